"""How Sphinx makes the documentation: ``python -m sphinx -W -b html launch/docs launch/docs/_build``."""

import ast
import contextlib
import importlib
import io
import logging
import os
import pathlib
import sys

from absl import flags
from docutils import nodes
from docutils.parsers.rst import Directive

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
os.environ["JAX_PLATFORMS"] = "cpu"  # no accelerator should be taken for this

import dsb_jax

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ["COLUMNS"] = "96"  # of the help texts

project = "dsb_jax"
author = "The dsb_jax authors"
release = version = dsb_jax.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # a docstring's `name` is a link where there is such a name, and code where not
add_module_names = False
toc_object_entries_show_parents = "hide"

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the signature has them

myst_heading_anchors = 3

html_theme = "furo"
html_title = f"dsb_jax {release}"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_domain_indices = False
html_static_path = ["_static"]
html_css_files = ["style.css"]
smartquotes_action = "De"  # dashes, but quotes as they are


def skip_fields(app, what, name, obj, skip, options):
    """Fields of a NamedTuple are told by its docstring; Python's own line about each says nothing."""
    return True if type(obj).__name__ == "_tuplegetter" else skip


class CommandHelp(Directive):
    """What ``python -m MODULE ARGUMENTS --help`` prints; of ``dsb_jax.main``, whose help is long, its own flags."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        """One literal block."""
        module, *arguments = self.arguments[0].split()
        text = flags_help(module) if module == "dsb_jax.main" else parser_help(module, arguments)
        return [wide(text)]


class ConfigFiles(Directive):
    """The files in ``configs/``, each with the first sentence of its docstring."""

    def run(self):
        """One definition list."""
        items = []
        for path in sorted((ROOT / "configs").glob("*.py")):
            name, what = f"configs/{path.name}", docstring(path).partition("\n\n")[0]
            term = nodes.term("", "", nodes.literal(name, name))
            items.append(nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph("", what))))
        return [nodes.definition_list("", *items)]


class ScriptDocstring(Directive):
    """What a program in ``launch/`` says of itself."""

    required_arguments = 1

    def run(self):
        """One literal block."""
        text = docstring(ROOT / "launch" / self.arguments[0])
        return [wide(text)]


def wide(text):
    """A block of up to 120 columns."""
    return nodes.container("", nodes.literal_block(text, text, language="text"), classes=["wide"])


def docstring(path):
    """A file's, without running it."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def flags_help(module):
    """The flags that a module defines, as absl prints them."""
    importlib.import_module(module)
    return flags.FLAGS.module_help(module)


def parser_help(module, arguments):
    """What argparse prints; the modules have their parsers inside of ``main``."""
    try:
        main = importlib.import_module(f"{module}.__main__").main
    except ModuleNotFoundError:
        main = importlib.import_module(module).main
    printed, given = io.StringIO(), sys.argv
    sys.argv = ["", *arguments, "--help"]
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main()
    finally:
        sys.argv = given
    return printed.getvalue().rstrip()


def setup(app):
    """Called by Sphinx."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    app.connect("autodoc-skip-member", skip_fields)
    app.add_directive("command-help", CommandHelp)
    app.add_directive("config-files", ConfigFiles)
    app.add_directive("script-docstring", ScriptDocstring)
    return {"parallel_read_safe": True}
