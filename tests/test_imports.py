"""What is imported: the core JAX alone, every layer only what lies below it, nothing TensorFlow or PyTorch."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

import dsb_jax

PACKAGE = pathlib.Path(dsb_jax.__file__).parent

# From the bottom up; packages of one line import neither each other nor what is above.
LAYERS = (
    ("validation",),
    ("command_line",),
    ("semantic_scale",),
    ("feature_pool", "interference", "losses"),
    ("balancers",),
    ("__init__",),  # the names of the core
    ("data", "evaluation", "models", "objectives"),
    ("training",),
    ("main", "toolkit"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


@functools.cache
def modules_after(statement):
    """Names of top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import dsb_jax",
        "from dsb_jax import balancers, feature_pool, interference, losses, semantic_scale, validation",
    ],
)
def test_the_core_imports_jax_alone(statement):
    others = modules_after(statement) - modules_after("import jax") - sys.stdlib_module_names
    assert others == {"dsb_jax"}


def test_the_other_packages_load_when_first_used():
    loaded = modules_after("import dsb_jax\nassert dsb_jax.models.names()")
    assert "flax" in loaded
    assert loaded & {"tensorflow_datasets", "grain", "matplotlib", "sklearn"} == set()
    for name in ("data", "evaluation", "models", "objectives", "toolkit", "training"):
        assert getattr(dsb_jax, name).__name__ == f"dsb_jax.{name}"
        assert name in dir(dsb_jax)
    with pytest.raises(AttributeError, match="no attribute 'modles'"):
        _ = dsb_jax.modles


def test_every_public_name_of_the_core_is_there():
    assert [name for name in dsb_jax.__all__ if not hasattr(dsb_jax, name)] == []


def imported(path):
    """Full names of all that a module imports, also inside of functions, but for what type checkers alone see."""
    module = ast.parse((PACKAGE / path).read_text())
    module.body = [
        node for node in module.body if not isinstance(node, ast.If) or ast.unparse(node.test) != "TYPE_CHECKING"
    ]
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(name):
    """The layer of ``dsb_jax.balancers.uniform`` is ``balancers``; of ``dsb_jax`` and its functions ``__init__``."""
    part = [*name.split("."), ""][1]
    return part if part in RANK else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_run_down(path):
    own = path.parts[0].removesuffix(".py")
    within = [name for name in imported(path) if name.partition(".")[0] == "dsb_jax"]
    wrong = [name for name in within if layer_of(name) != own and RANK[layer_of(name)] >= RANK[own]]
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_imports_tensorflow_or_pytorch(path):
    assert {name.partition(".")[0] for name in imported(path)} & {
        "tensorflow",
        "torch",
        "torchvision",
        "keras",
    } == set()
