"""``python -m dsb_jax.models [PATTERN]``: the models, with their parameters, operations, features and papers."""

import argparse

from tqdm import tqdm

from dsb_jax import models
from dsb_jax.models import zoo

_ROW = "{:17} {:>12} {:>9} {:>9} {:>9}  {}"


def main() -> None:
    """Prints a row for every model whose name matches."""
    parser = argparse.ArgumentParser(prog="python -m dsb_jax.models", description=__doc__.partition(": ")[2])
    parser.add_argument("pattern", nargs="?", default="*", help="of names, as 'resnet*'; all by default")
    pattern = parser.parse_args().pattern
    chosen = models.names(pattern)
    if not chosen:
        parser.error(f"no model is called {pattern!r}; the names are {', '.join(models.names())}")
    print(_ROW.format("name", "parameters", "images", "GFLOPs", "features", "paper"))
    for name in tqdm(chosen, desc="Models", leave=False, disable=len(chosen) < 2):
        tqdm.write(_row(name))
    print("With 1,000 classes; an operation is a multiplication or an addition, of one image passing forward.")


def _row(name):
    entry = zoo.entry(name)
    size = models.size(name)
    image = "x".join(map(str, entry.image))
    return _ROW.format(name, f"{size.parameters:,}", image, f"{size.operations / 1e9:.3f}", size.features, entry.source)


if __name__ == "__main__":
    main()
