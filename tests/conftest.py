"""Every test runs on eight virtual CPU devices, and silent rank promotion is an error."""

import logging
import os
import pathlib
import sys

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from dsb_jax import main
from dsb_jax.training import loop

# XLA takes a thread for each device, and waits for ever for those that the machine has no core for.
os.environ.setdefault("NPROC", "16")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """What one test compiled, the next one need not."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compilation_cache")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


# Whose numbers are compared closely, or take longer to compute than to compile.
OPTIMIZED = {"test_semantic_scale", "test_interference"}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request):
    """Most of a test's time is compilation, and most of that LLVM's: without ``-m slow`` it does the least it can."""
    slow = request.config.getoption("-m") == "slow"
    jax.config.update("jax_disable_most_optimizations", not slow and request.module.__name__ not in OPTIMIZED)


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


@pytest.fixture(params=["eager", "jit"])
def variant(request):
    """In turn ``variant(function)`` is the function itself, and compiled."""
    return {"eager": lambda function: function, "jit": jax.jit}[request.param]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """In turn float32, and float64 where JAX has it."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def accelerator(monkeypatch):
    """What accelerators compute otherwise than CPUs, a CPU computes as they do."""
    jax.clear_caches()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
    yield
    jax.clear_caches()


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


@pytest.fixture
def logging_as_before():
    """What a command line makes of logging ends with the test."""
    loggers = [logging.getLogger(name) for name in (None, "dsb_jax", "absl")]
    handlers, levels = list(loggers[0].handlers), [logger.level for logger in loggers]
    yield
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def command(monkeypatch, tmp_path, logging_as_before):
    """``command(arguments)`` runs main in an empty folder in this process, and gives what it raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "train", lambda config, workdir, resume: seen.append((config, workdir)))
    seen = []

    def run(*arguments):
        arguments = ["main.py", *arguments]
        monkeypatch.setattr(sys, "argv", arguments)  # where config_flags looks for overrides
        seen.clear()
        with flagsaver.flagsaver():
            main.main(main._parse(arguments))
        return seen[0]

    return run


@pytest.fixture
def trains(monkeypatch, command):
    """``command``, but with the real training."""
    monkeypatch.setattr(main, "train", loop.train)
    return command
