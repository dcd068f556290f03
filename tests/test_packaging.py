"""What is built of the package works without the repository, and its types are those that they say."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

import dsb_jax
from dsb_jax import data

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = {path.name for path in (ROOT / "configs").glob("*.py")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of an sdist and of the wheel that was built from it, without network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", f"--outdir={folder}", str(ROOT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder of what the wheel installs."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel(built)) as archive:
        archive.extractall(folder)
    return folder


def wheel(folder):
    (path,) = folder.glob("*.whl")
    return path


def outside(installed, folder, *arguments):
    """Python in a folder that is not the repository's, where the package is the one that the wheel installs."""
    environment = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_has_the_package_and_the_configs_and_nothing_else(built):
    with zipfile.ZipFile(wheel(built)) as archive:
        names = archive.namelist()
        (described,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(described).decode()
    files = (path for path in (ROOT / "dsb_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    package = {path.relative_to(ROOT).as_posix() for path in files}
    assert "dsb_jax/py.typed" in package
    information = described.rpartition("/")[0]
    assert sorted(names) == sorted(
        [
            *package,
            *(f"dsb_jax/configs/{name}" for name in CONFIGS),
            *(f"{information}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")),
        ]
    )
    assert re.search(r"^Version: (.*)$", metadata, re.M)[1] == dsb_jax.__version__


def test_the_sdist_has_what_the_tests_need(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"README.md", "LICENSE", "pyproject.toml", "requirements.lock", "launch/reproduce.py", "tests/conftest.py"}
    assert names >= wanted | {f"configs/{name}" for name in CONFIGS}
    assert names >= {path.relative_to(ROOT).as_posix() for path in (ROOT / "launch/results").rglob("*.csv")}


def test_a_config_by_name_trains_outside_of_the_repository(installed, tmp_path):
    where = outside(installed, tmp_path, "-c", "import dsb_jax; print(dsb_jax.__file__, dsb_jax.__version__)")
    assert where.stdout.split() == [str(installed / "dsb_jax" / "__init__.py"), dsb_jax.__version__]
    data.load("digits", "test")  # prepared, so that nothing is to be said of it
    done = outside(
        installed, tmp_path, "-m", "dsb_jax.main", "--config=digits_lt:model=lenet,epochs=1,sample_space=False,seed=3"
    )
    assert (done.returncode, done.stderr) == (0, "")
    workdir = pathlib.Path("runs/digits_lt/dsb-ce-seed3")
    assert done.stdout.startswith(f"workdir: {workdir}\n")
    assert (tmp_path / workdir / "report.html").exists()
    assert json.loads((tmp_path / workdir / "config.json").read_text())["imbalance"] == 20.0
    (start,) = json.loads((tmp_path / workdir / "environment.json").read_text())
    assert start["dsb_jax"] == dsb_jax.__version__


@pytest.mark.slow  # CI runs it with what else is lint
def test_types_of_the_package_hold():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow  # mypy reads all of JAX and of the package
def test_a_users_program_has_types_and_runs(installed, tmp_path):
    program = str(ROOT / "tests" / "typed_program.py")
    (tmp_path / "wrong.py").write_text(
        'import dsb_jax\ndsb_jax.balancers.semantic_scale("ten", 100)\ndsb_jax.toolkit.scales([1.0])\n'
    )
    strict = ("-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}")
    found = outside(installed, tmp_path, *strict, program, "wrong.py")
    *errors, _ = found.stdout.splitlines()
    assert [line.partition(" error: ")[0] for line in errors] == ["wrong.py:2:", "wrong.py:3:"], found.stderr
    ran = outside(installed, tmp_path, program)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Augment or collect first: " in ran.stdout
