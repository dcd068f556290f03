"""What a run leaves behind: config.json, train_indices.npy, metrics.jsonl, results.json."""

import contextlib
import io
import json
import math
import os
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict


class Workdir:
    """The folder of one run; entered as a context, it is written to.

    Args:
      path: made if it is not there.
      config: what the run is; a folder that holds a run of another config is refused.

    Raises:
      ValueError: if ``path`` cannot be a folder or holds another run; the message has the settings that differ.
    """

    def __init__(self, path: str | os.PathLike[str], config: ConfigDict) -> None:
        self.path = pathlib.Path(path)
        self._settings = _finite(config.to_dict())
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"workdir {str(path)!r} is not a folder")
        config_file = self.path / "config.json"
        if config_file.exists():
            self._refuse_another(json.loads(config_file.read_text()), self._settings)

    def __enter__(self) -> "Workdir":
        with _naming(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._metrics = (self.path / "metrics.jsonl").open("w")
        self.write_json("config.json", self._settings)
        return self

    def __exit__(self, *exception: Any) -> None:
        with _naming(self._metrics.name):
            self._metrics.close()

    @property
    def results(self) -> dict[str, Any] | None:
        """What a finished run left, or None."""
        file = self.path / "results.json"
        return json.loads(file.read_text()) if file.exists() else None

    def _refuse_another(self, before, now):
        before, now = dict(_flat(before)), dict(_flat(now))
        keys = sorted(key for key in before | now if before.get(key) != now.get(key))
        if keys:
            changes = ", ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys)
            raise ValueError(f"{self.path} holds a run of another config ({changes}); choose another --workdir")

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file at once or not at all. NaN and infinity, which JSON has not, become null."""
        self._replace(name, (json.dumps(_finite(content), indent=2) + "\n").encode())

    def write_indices(self, indices: np.ndarray) -> None:
        """The rows of the training split that the run trains on."""
        content = io.BytesIO()
        np.save(content, indices)
        self._replace("train_indices.npy", content.getvalue())

    def log(self, **metrics: Any) -> None:
        """Appends a line to metrics.jsonl."""
        with _naming(self._metrics.name):
            self._metrics.write(json.dumps(_finite(metrics)) + "\n")
            self._metrics.flush()

    def _replace(self, name, content):
        partial = self.path / f"{name}.partial"
        with _naming(partial):
            partial.write_bytes(content)
        partial.replace(self.path / name)


@contextlib.contextmanager
def _naming(path):
    """An error while writing, a full disk's for one, does not say by itself which file it was."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _finite(value):
    """Arrays become lists, and what JSON cannot write becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
