"""Every block of commands and of code in the README runs as it stands, where what it reads is small.

Those under "Two commands" make environments; `.ci/run` runs them whole.
"""

import collections
import csv
import glob
import pathlib
import re
import runpy
import shlex
import shutil
import sys

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from small_run import digits, made_up_weights

import dsb_jax
from dsb_jax import data, main, models, training
from dsb_jax.data import prepare
from dsb_jax.toolkit import __main__ as toolkit
from dsb_jax.training import experiment
from dsb_jax.training.config import with_arguments
from dsb_jax.training.program import Program

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # config_flags does

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(
    r"```(sh|python)\n(.*?)```", re.sub(r"## Two commands.*?\n## ", "", README, flags=re.DOTALL), re.DOTALL
)
COMMANDS = [text for language, text in BLOCKS if language == "sh"]
SECTIONS = [re.findall(r"```python\n(.*?)```", section, re.DOTALL) for section in README.split("\n## ")]

SMALL = "batch_size=16,eval_batch_size=16,image_size=32,sample_space=False,devices=1"


def images(folder):
    """Three classes of ten images, and the table that lists them."""
    rng, rows = np.random.default_rng(0), []
    for number, name in enumerate(("crow", "owl", "wren")):
        (folder / "photos/birds" / name).mkdir(parents=True)
        for index in range(10):
            path = folder / "photos/birds" / name / f"{index}.png"
            assert cv2.imwrite(str(path), rng.integers(40 * number, 40 * number + 90, (36, 40, 3), np.uint8))
            rows.append((path.relative_to(folder), name))
    with (folder / "birds.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that the README's commands read."""
    folder = tmp_path_factory.mktemp("place")
    images(folder)
    rng = np.random.default_rng(0)
    np.savez(folder / "embeddings.npz", features=rng.normal(size=(60, 8)), labels=np.arange(60) % 3)
    (folder / "DIR").mkdir()
    (folder / "DIR/val2018.json").write_text("{}")  # a download that has only begun
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    shutil.copytree(REPOSITORY / "launch", folder / "launch", ignore=shutil.ignore_patterns("*.html", "docs"))
    for balancer, name in (("uniform", "ce"), ("dsb", "dsb-ce")):
        config = digits(f"balancer={balancer},epochs=1,start_epoch=0,image_size=8")
        training.train(config, folder / f"runs/cifar10_lt/{name}-seed0")
    return folder


def train(config, workdir, resume):
    """Of what is not here the first steps, on made-up pixels; own images to the end, by a small network."""
    small = with_arguments(config, SMALL if config.init_from else f"{SMALL},model=lenet,frozen_norm=False,dsb.dim=8")
    if config.shorter_side is not None:
        small.shorter_side = 36
    if config.dataset == "folder/birds":
        training.train(with_arguments(small, "epochs=1,warmup_epochs=0"), workdir, resume=resume)
        return
    small = with_arguments(small, "data=synthetic,resident_megabytes=0")
    program = Program(small, experiment.build(small))
    state, batches = program.initial, program.batches(0)
    for _ in range(3):
        state, outputs = program.train_step(state, next(batches))
        assert np.isfinite(outputs["loss"])


def run(line, folder, monkeypatch):
    """The exit code of one command."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "python"
    arguments = [name for argument in arguments for name in sorted(glob.glob(argument)) or [argument]]
    if arguments[:2] == ["-m", "dsb_jax.main"]:
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments[2:]])  # where config_flags looks for overrides
        with flagsaver.flagsaver():
            main.main(main._parse(sys.argv))
        return 0
    if arguments[0] == "-m":
        return {"dsb_jax.data.prepare": prepare, "dsb_jax.toolkit": toolkit}[arguments[1]].main(arguments[2:])
    if arguments[1].startswith("table"):
        arguments.append("--pages")  # its 54 runs are of the tests of launch/reproduce.py
    script = runpy.run_path(str(REPOSITORY / arguments[0]))
    return script["main"]([*arguments[1:], "--results", str(folder / "launch/results")])


# A ResNet-50 takes a minute to compile, and the hours of all tables half a minute to count.
SLOW = "resnet50", "launch/reproduce.py"


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(text, id=text.split("  ")[0], marks=[pytest.mark.slow] * any(name in text for name in SLOW))
        for text in COMMANDS
    ],
)
def test_commands_run(block, place, monkeypatch, logging_as_before, tmp_path, capsys):
    if "init_from" in block:
        made_up_weights("resnet50", place / "resnet50.safetensors", num_classes=1000, side=32)
    monkeypatch.setattr(main, "train", train)
    monkeypatch.chdir(place)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for line in block.splitlines():
        code = run(line, place, monkeypatch)
        printed = capsys.readouterr()
        if "inat2018 --archive" in line:  # "says which file it wants from where, if one is missing"
            assert code == 2
            assert re.search(r"train_val2018.* of github.com/visipedia", printed.err)
        else:
            assert code == 0, printed.err


@pytest.mark.parametrize(
    "blocks", [blocks for blocks in SECTIONS if blocks], ids=lambda blocks: blocks[0].split("\n")[0]
)
def test_code_runs(blocks, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    if any("resnet50" in block for block in blocks):
        made_up_weights("resnet50", "resnet50.safetensors", num_classes=1000, side=32)
    names = {
        "dsb_jax": dsb_jax,
        "features": jnp.asarray(rng.normal(size=(40, 64)), jnp.float32),
        "labels": jnp.asarray(np.arange(40) % 10, jnp.int32),
        "losses": jnp.ones(40, jnp.float32),
        "class_names": [f"class {number}" for number in range(10)],
        "num_classes": 10,
    }
    for block in blocks:
        exec(block, names)
    assert len(names) > 8  # what the blocks assign is there
    for name in ("weights", "scales", "volumes"):
        if name in names and not isinstance(names[name], dict):
            assert np.all(np.isfinite(names[name])), name


def test_pictures_are_there_and_described():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", README)
    assert len(pictures) >= 3
    for text, path in pictures:
        assert len(text) > 20, path
        assert (REPOSITORY / path).stat().st_size > 10_000


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (REPOSITORY / target).exists(), target
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)", README, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


# Names in the rows, where they are others than in the table.
ROWS = {"Deconfound-TDE": ["TDE"], "τ-norm": ["tau-norm"], "decoupled BS": ["decoupled-BS"], "CDB": ["CDB-CE"]}
ROWS |= {"LOCE": ["LOCE", "LOCE-CE"], "domain balancing": ["DomB", "DF-CE"], "DSB without interference": ["DSB-CE-1"]}


def test_results_of_methods_are_those_of_the_rows():
    found = collections.defaultdict(list)
    with (REPOSITORY / "launch/results/methods.csv").open() as file:
        for row in csv.DictReader(file):  # of a method alone, and below it with DSB
            found[row["method"]].append(row["top1"])
    table = README.partition("### Methods")[2].partition("\nStages are data")[0]
    rows = [row.split("|") for row in table.splitlines() if row.startswith("| ") and "MNIST-LT" not in row]
    told = 0
    for row in rows[1:]:
        names = [name for each in row[1].strip().split(", ") for name in ROWS.get(each, [each])]
        assert row[6].strip() == "; ".join(" / ".join(found[name]) for name in names if name in found), row[1]
        told += bool(row[6].strip())
    assert told > 20


def test_the_table_of_datasets_is_what_is_known_of_them():
    table = README.partition("### Datasets")[2].partition("\n```")[0]
    rows = {
        row.split("`")[1]: [cell.strip() for cell in row.split("|")[2:6]] for row in re.findall(r"^\| `.*", table, re.M)
    }
    assert sorted(rows) == [name for name in data.names() if name not in ("folder", "listing")]
    for name, (classes, images, _, config) in rows.items():
        counts = data.spec(name).train_counts()
        assert (classes, images) == (f"{len(counts):,}", f"{counts.sum():,}"), name
        assert not config or (REPOSITORY / "configs" / f"{config.strip('`')}.py").exists(), name


def test_the_table_of_models_has_their_parameters():
    table = README.partition("### Models and weights")[2].partition("\nErrors are")[0]
    ((name, number),) = re.findall(r"^\| `(resnet32)` \| ([\d,]+)", table, re.M)
    assert models.size(name, 10).parameters == int(number.replace(",", ""))
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `.*", table, re.M)))) <= set(models.names())
