"""Every test runs on eight virtual CPU devices, and silent rank promotion is an error."""

import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def tfds_data_dir(tmp_path_factory):
    """No test writes to the user's own datasets."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        yield folder


@pytest.fixture
def strict_dtypes():
    """Mixed dtypes raise: for the core and the losses, which must say every conversion."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def golden():
    """Reads one file of the official implementations' numbers, or skips."""
    folder = SHARED / "golden" / "public"
    if not folder.is_dir():
        pytest.skip(f"golden numbers are not at {folder}")

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)

    return read


@pytest.fixture
def shared_data():
    """The folder of a real dataset beside the checkout, or skips."""

    def find(name: str) -> pathlib.Path:
        folder = SHARED / "data" / name
        if not folder.is_dir():
            pytest.skip(f"dataset files are not at {folder}")
        return folder

    return find
