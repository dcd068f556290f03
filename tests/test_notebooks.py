"""The notebooks of launch/ run from top to bottom, with small settings, and leave behind what they show."""

import json
import os
import pathlib
import runpy
import sys

import nbclient
import nbformat
import pytest

from dsb_jax import data
from dsb_jax.training import experiment

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("launch/*.ipynb"))
SMALL = "model=lenet,learning_rate=0.05,log_every=5,sample_space=False"


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The name of a kernel of this interpreter and this source tree, that Jupyter knows of in this test alone."""
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "this Python",
        "language": "python",
        "env": {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),  # the same program is run twice
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    }
    folder = tmp_path / "jupyter" / "kernels" / "this-python"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # the paths that jupyter_core asks everyone to choose
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter" / name.lower()))
    return "this-python"


@pytest.fixture
def run(kernel, tmp_path):
    """Runs a notebook in an empty folder, with other parameters and without what it installs; gives the folder."""
    data.load("digits", "test")  # before any kernel: prepared once

    def run(name, **parameters):
        notebook = nbformat.read(ROOT / "launch" / f"{name}.ipynb", as_version=4)
        place, defaults = parameters_of(notebook)
        assert set(parameters) == set(defaults)
        given = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
        folder = tmp_path / "work"
        folder.mkdir()
        nbclient.NotebookClient(
            notebook, kernel_name=kernel, timeout=300, skip_cells_with_tag="install", shutdown_kernel="immediate",
            resources={"metadata": {"path": str(folder)}},
        ).execute()  # fmt: skip
        return notebook, folder

    return run


def tags(cell):
    return cell.metadata.get("tags", [])


def parameters_of(notebook):
    """Where the cell of the parameters is, and what it sets."""
    [place] = [index for index, cell in enumerate(notebook.cells) if "parameters" in tags(cell)]
    values = {}
    exec(notebook.cells[place].source, values)
    return place, {name: value for name, value in values.items() if name != "__builtins__"}


def shown(notebook):
    """The text and the HTML that the cells put out."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    pages = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", ())]
    return text, pages


def top1(folder):
    assert (folder / "report.html").stat().st_size > 10_000
    value = json.loads((folder / "results.json").read_text())["top1"]
    assert 0 < value <= 1
    return value


@pytest.mark.slow
def test_colab(run, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    notebook, folder = run(
        "colab",
        CLONE=str(ROOT),
        DIGITS=f"{SMALL},epochs=3,start_epoch=1",
        REHEARSAL=f"{SMALL},epochs=1,schedule=linear,warmup_epochs=0,imbalance=10,images_per_class=100,eval_batch_size=2000",
    )
    text, pages = shown(notebook)
    digits = top1(folder / "runs" / "digits_lt" / "dsb-ce-seed0")
    assert f"top-1 {digits:.1%}\n" in text
    assert "<iframe srcdoc=" in "".join(pages)
    assert text.count("step 300: loss") == 1
    top1(folder / "runs" / "cifar10_lt" / "dsb-ce-seed0-rehearsal")
    assert "images/s on 1 x cpu\n" in text


@pytest.mark.slow
def test_tpu_pod(run, monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)  # the notebook asks for eight
    notebook, folder = run(
        "tpu_pod", CLONE=str(ROOT), SETTINGS=f"{SMALL},epochs=4,start_epoch=1,eval_batch_size=400", RUNS="runs"
    )
    text, _ = shown(notebook)
    whole, stopped = (top1(folder / "runs" / name) for name in ("whole", "stopped"))
    assert abs(whole - stopped) < 0.05
    assert "device 7 of process 0: rows 56 to 63\n" in text
    assert f"top-1 {whole:.1%} on 8 devices\n" in text
    assert "told to end by SIGTERM; the command would exit with 143\n" in text
    assert "going on from step" in text
    assert f"top-1 {stopped:.1%}, of the run that nothing stopped {whole:.1%}\n" in text


@pytest.mark.parametrize(
    ("notebook", "parameter", "config", "more"),
    [
        ("colab", "DIGITS", "digits_lt", ""),
        ("colab", "REHEARSAL", "cifar10_lt", ",data=synthetic"),
        ("tpu_pod", "SETTINGS", "digits_lt", ""),
    ],
)
def test_the_settings_that_notebooks_come_with_fit(notebook, parameter, config, more):
    _, defaults = parameters_of(nbformat.read(ROOT / "launch" / f"{notebook}.ipynb", as_version=4))
    get_config = runpy.run_path(str(ROOT / "configs" / f"{config}.py"))["get_config"]
    assert experiment.build(get_config(defaults[parameter] + more)).steps > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells[:1]] == ["markdown"]
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    # What needs a network or another machine is in a cell that is not run here.
    commands = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.lstrip().startswith("!")]
    assert commands == []
    assert os.fspath(path.parent) not in path.read_text()
