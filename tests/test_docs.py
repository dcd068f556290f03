"""The documentation: pages are built without a warning, hold what is public, and say of commands what they do."""

import contextlib
import doctest
import html.parser
import importlib
import io
import os
import pathlib
import re
import shlex
import string
import subprocess
import sys
import tomllib

import pytest
from absl import flags
from small_run import slow_but

import dsb_jax
from dsb_jax import main
from dsb_jax.data import __main__ as data_command
from dsb_jax.data import prepare
from dsb_jax.models import __main__ as models_command
from dsb_jax.toolkit import __main__ as toolkit_command
from dsb_jax.training import experiment, processes
from dsb_jax.training.config import base_config

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "launch"))
import local
import plan
import reproduce

ROOT = pathlib.Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

DOCS = ROOT / "launch" / "docs"
PAGES = {path.relative_to(DOCS).with_suffix("").as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
PICTURES = sorted((DOCS / "pictures").iterdir())
WITH_CODE = [name for name, path in PAGES.items() if re.search(r"^```(sh|python)$", path.read_text(), re.MULTILINE)]


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, path):
        super().__init__()
        self.path, self.tags = path, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, *tags):
        return [attributes for tag, attributes in self.tags if tag in tags]

    @property
    def ids(self):
        return {attributes["id"].removeprefix("module-") for _, attributes in self.tags if "id" in attributes}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the pages, built as the README says; a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*sphinx, "-d", out / "doctrees", DOCS, out / "html"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return out / "html"


@pytest.fixture(scope="module")
def built(site):
    """The pages by their names."""
    return {path.relative_to(site).with_suffix("").as_posix(): Page(path) for path in site.rglob("*.html")}


# What is on the pages.


def test_every_source_is_a_page_that_the_menu_leads_to(built):
    assert set(PAGES) <= set(built)
    menu = {attributes.get("href", "") for attributes in built["index"].all("a")}
    assert {f"{name}.html" for name in PAGES} - {"index.html"} <= menu


PACKAGES = ("", ".losses", ".objectives", ".models", ".data", ".evaluation", ".toolkit", ".training")
MODULES = ("balancers", "feature_pool", "interference", "semantic_scale")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_entry(built, package):
    module = importlib.import_module(f"dsb_jax{package}")
    names = {name for name in module.__all__ if getattr(module, name).__doc__ and not name.isupper()}
    assert names
    page = built[f"reference/{package[1:] or 'core'}"]
    everywhere = set().union(*(page.ids for page in built.values()))  # modules have pages of their own
    assert {f"dsb_jax{package}.{name}" for name in names} <= page.ids | everywhere


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_of_the_core_has_an_entry(built, name):
    module = importlib.import_module(f"dsb_jax.{name}")
    public = {
        key
        for key, value in vars(module).items()
        if key[0] != "_" and callable(value) and value.__module__ == module.__name__
    }
    assert len(public) > 2
    assert {f"{module.__name__}.{key}" for key in public} <= built[f"reference/{name}"].ids


def test_entries_are_docstrings_with_their_sections(site):
    text = (site / "reference" / "balancers.html").read_text()
    start = text.index('id="dsb_jax.balancers.class_difficulty"')
    entry = text[start : text.index('id="dsb_jax.balancers.loce"')]
    for part in ("Parameters", "Returns", "Raises", "Example", "Sinha et al."):
        assert part in entry
    assert "Alias for field number" not in (site / "reference" / "core.html").read_text()


def test_all_settings_and_commands_are_told(site, built):
    settings = re.sub(r"<[^>]+>", "", (site / "commands" / "settings.html").read_text())
    assert all(f"config.{key} = " in settings for key in base_config())
    assert all(f"configs/{path.name}" in settings for path in ROOT.glob("configs/*.py"))
    [commands] = [action.choices for action in toolkit_command._parser()._actions if action.dest == "command"]
    assert set(commands) <= built["commands/toolkit"].ids
    told = (site / "commands" / "main.html").read_text()
    own = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(main)}
    assert {"config", "workdir", "resume", "cluster"} <= own
    assert all(f"--{name}" in told or f"--[no]{name}" in told for name in own)


def test_pages_load_nothing_from_the_network(site, built):
    for page in built.values():
        loaded = [attributes.get("src") for attributes in page.all("script", "img", "iframe", "source", "embed")]
        loaded += [link["href"] for link in page.all("link") if link["href"] != "#"]
        for reference in filter(None, loaded):
            assert re.match(r"[\w.]", reference), reference
            assert ":" not in reference
            assert (page.path.parent / reference.partition("?")[0]).exists(), reference
    sheets = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", sheets)


def test_links_within_the_pages_lead_somewhere(built):
    pages = {page.path.resolve(): page.ids for page in built.values()}
    assert len(pages) > 25
    for page in built.values():
        for link in page.all("a"):
            path, _, anchor = link.get("href", "").partition("#")
            if ":" in path or not path:
                continue
            target = (page.path.parent / path).resolve()
            assert target in pages, (page.path, path)
            assert not anchor or anchor.removeprefix("module-") in pages[target], (page.path, path, anchor)


def test_every_picture_is_told_in_words_and_small(built):
    shown = [image for page in built.values() for image in page.all("img")]
    assert len(shown) >= len(PICTURES) > 0
    assert all(len(image["alt"]) > 40 for image in shown)
    assert {path.name for path in PICTURES} <= {pathlib.Path(image["src"]).name for image in shown}
    assert all(path.suffix == ".png" and path.stat().st_size <= 150_000 for path in PICTURES)


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## (\S+)", (DOCS / "changelog.md").read_text(), re.MULTILINE)
    assert versions[0] == dsb_jax.__version__


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name):
    named = re.findall(r"(?<![\w/.])(?:launch|configs|tests|dsb_jax)/[\w./-]*\w", PAGES[name].read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


# The code on the pages.


def code_of(name):
    """The blocks of a page, each its language and its text; then the commands within sentences."""
    text = PAGES[name].read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    return blocks, [code for code in inline if re.match(r"python3? -m dsb_jax|python launch/\S+ ", code)]


def run_python(text, names):
    """A block as a script, or what is said to an interpreter, which knows the names of the blocks before."""
    if ">>>" in text:
        test = doctest.DocTestParser().get_doctest(text, names, "page", "page", 0)
        assert test.examples
        assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
        names.update(test.globs)
    else:
        exec(compile(text, "page", "exec"), names)


def assert_shown(shown, printed):
    """What a page shows is what was printed, with … for what it leaves out."""
    pattern = ".*".join(re.escape(part) for part in shown.strip().split("…"))
    assert re.fullmatch(pattern, printed.strip(), re.DOTALL), f"{printed}\nis not\n{shown}"


class Shell:
    """Checks commands by the parsers that would read them, and runs those that take no time."""

    def __init__(self, command):
        self.command, self.variables = command, dict(os.environ)
        self.launched = {"examples": self.example, "local.py": self.local, "plan.py": self.plan}
        self.launched |= {"reproduce.py": self.reproduce, "tpu_pod.sh": self.tpu_pod}

    def __call__(self, line):
        """What the command printed, or None where it was not run."""
        words = shlex.split(string.Template(line).substitute(self.variables), comments=True)
        while words and re.match(r"[A-Z]+=", words[0]):
            key, _, value = words.pop(0).partition("=")
            self.variables[key] = value
        match words:
            case []:
                return None
            case ["python", "-m", module, *arguments]:
                return self.module(module, arguments)
            case ["python", script, *arguments] if script.startswith("launch/"):
                return self.script(script, arguments)
            case [script, *arguments] if script.startswith("launch/") and os.access(ROOT / script, os.X_OK):
                return self.script(script, arguments)
            case ["sbatch", *options, "launch/slurm.sbatch", _, _] if all(each[:2] == "--" for each in options):
                return self.script("launch/slurm.sbatch", words[-2:])
            case ["kubectl", "apply", "-f", "launch/gke.yaml"]:
                return None
            case ["gcloud", *_]:
                assert shlex.join(words) in (ROOT / "launch" / "tpu_pod.sh").read_text()
                return None
            case ["pip", "install", "-q", *packages]:
                return self.pip(packages)
            case ["python3", "-m", "venv", ".venv"] | [".", ".venv/bin/activate"]:
                return None
            case ["git", "clone", "URL", folder] | ["cd", folder]:
                assert folder == "dsb_jax"
                return None
        pytest.fail(f"nothing here knows the command {line!r}")

    def module(self, module, arguments):
        match module:
            case "dsb_jax.main":
                return self.main(arguments)
            case "dsb_jax.toolkit" if arguments[0] in ("scales", "marginal", "correlate"):
                return printed(lambda: toolkit_command.main(arguments))
            case "dsb_jax.toolkit":
                return toolkit_command._parser().parse_args(arguments) and None
            case "dsb_jax.data":
                return printed(lambda: data_command.main(arguments))
            case "dsb_jax.data.prepare" if arguments[-1] == "DIR":
                assert dsb_jax.data.spec(arguments[0]) is not None
                return None
            case "dsb_jax.data.prepare":
                return printed(lambda: prepare.main(arguments))
            case "dsb_jax.models":
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(sys, "argv", ["models", *arguments])
                    return printed(models_command.main)
        pytest.fail(f"nothing here knows the module {module}")

    def main(self, arguments):
        """The settings make an experiment, of made-up images where the dataset is not at hand."""
        if "--compare" in arguments:
            return printed(lambda: self.command(*arguments), IndexError)  # it trains nothing
        config, _ = self.command(*arguments)
        if config.dataset not in ("digits", "folder/digits"):
            config.data = "synthetic"
        config.devices = 1
        assert experiment.build(config).steps > 0
        return None

    def script(self, script, arguments):
        name = script.split("/")[1]
        if name in self.launched:
            return self.launched[name](script, arguments)
        assert name in ("slurm.sbatch", "xpk.sh")
        return self.main(arguments)

    def example(self, script, arguments):
        assert (ROOT / script).exists()  # and runs, in test_examples.py
        assert not arguments

    def local(self, script, arguments):
        _, command = local._parse(arguments)
        return self(shlex.join(command)) and None

    def plan(self, script, arguments):
        return printed(lambda: plan.main(arguments))

    def reproduce(self, script, arguments):
        options = reproduce.parser().parse_args(arguments)
        if options.list:
            return printed(lambda: reproduce.listing(reproduce.RESULTS))
        if not options.claims:
            target = reproduce.chosen(options)
            methods = {cell.method for cell in target.cells[options.scale]}
            assert methods.issuperset(options.methods or ())
            assert target.cells[options.scale][0].configured(options.set)
        return None

    def tpu_pod(self, script, arguments):
        place = arguments.index("--") if "--" in arguments else len(arguments)
        if arguments[place + 1 :]:
            self(shlex.join(arguments[place + 1 :]))
        dry = [*arguments[:place], "--dry-run", *arguments[place:]]
        done = subprocess.run(["bash", ROOT / script, *dry], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def pip(self, packages):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        known = [".", *(f".[{extra}]" for extra in project["optional-dependencies"]), "equinox", "torch"]
        if packages[0] == "-c":
            assert (ROOT / packages[1]).exists()
            packages = packages[2:]
        assert [package for package in packages if package != "-e" and package not in known] == []


def printed(function, *expected):
    """What a call writes to stdout; it must end well, or with one of these errors."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(*expected):
        assert not function()
    return out.getvalue()


@pytest.fixture
def shell(command, monkeypatch, tmp_path):
    """In an empty folder that looks like a clone; nothing is trained, and no other process is waited for."""
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tensorflow_datasets"))
    monkeypatch.setattr(processes, "join", lambda *_, **__: None)
    monkeypatch.setattr(main.compare, "write", lambda workdirs, path, **_: path)
    monkeypatch.setattr(reproduce, "TARGETS", {"table5": reproduce.TARGETS["table5"]})  # to list all takes a minute
    return Shell(command)


@pytest.mark.parametrize("name", slow_but({*WITH_CODE} - {"tutorials/tpu_pod"}, WITH_CODE))
def test_code_of_a_page_runs_and_prints_what_it_says(name, shell):
    blocks, inline = code_of(name)
    output, names = None, {}
    for language, text in blocks:
        if language == "python":
            run_python(text, names)
        elif language == "sh":
            output = [shell(line) for line in text.replace("\\\n", " ").splitlines()][-1]
        elif language == "text" and output is not None:
            assert_shown(text, output)
    for command in inline:
        shell(command)
