"""``python -m dsb_jax.models [PATTERN]``: the models, with their parameters, operations, features and papers."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from dsb_jax import command_line, models, validation
from dsb_jax.models import zoo

_ROW = "{:17} {:>12} {:>9} {:>9} {:>9}  {}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for every model whose name matches.

    Args:
      arguments: the command line without the program's name; ``sys.argv`` by default.

    Returns:
      The exit code: 0, or 2 after one line on stderr where there is no such model.
    """
    return command_line.answer(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    parser = command_line.Parser(prog="python -m dsb_jax.models", description=__doc__.partition(": ")[2])
    parser.add_argument("pattern", nargs="?", default="*", help="of names, as 'resnet*'; all by default")
    pattern = parser.parse_args(arguments).pattern
    chosen = models.names(pattern)
    if not chosen:
        if set("*?[") & set(pattern):
            raise ValueError(f"no model is called {pattern!r}; the names are {', '.join(models.names())}")
        raise validation.unknown_name("model", pattern, models.names())
    print(_ROW.format("name", "parameters", "images", "GFLOPs", "features", "paper"))
    for name in tqdm(chosen, desc="Models", leave=False, disable=None if len(chosen) > 1 else True):
        tqdm.write(_row(name))
    print("With 1,000 classes; an operation is a multiplication or an addition, of one image passing forward.")


def _row(name):
    entry = zoo.entry(name)
    size = models.size(name)
    image = "x".join(map(str, entry.image))
    return _ROW.format(name, f"{size.parameters:,}", image, f"{size.operations / 1e9:.3f}", size.features, entry.source)


if __name__ == "__main__":
    sys.exit(main())
