"""Enters a workdir, says so, and stays until it is killed: ``python tests/held_workdir.py FOLDER``."""

import sys

from small_run import digits

from dsb_jax.training.workdir import Workdir

if __name__ == "__main__":
    with Workdir(sys.argv[1], digits()) as files:
        files.begin()
        print("entered", flush=True)
        sys.stdin.read()
