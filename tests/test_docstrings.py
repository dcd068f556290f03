"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsb_jax

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(dsb_jax.__path__, "dsb_jax.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"jax": jax, "jnp": jnp, "np": np, "dsb_jax": dsb_jax}
    with np.printoptions(precision=4, suppress=True):
        failed, _ = doctest.testmod(importlib.import_module(name), extraglobs=namespace)
    assert failed == 0
