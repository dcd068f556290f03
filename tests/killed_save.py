"""Saves one checkpoint after the other until it is killed: ``python tests/killed_save.py FOLDER SECONDS…``.

It is killed as many times as there are SECONDS, so long after its third save was to begin and the first was done. Every
time it prints the last step that it was to save, and waits for a line of input. Imports take longer than all of this:
each saver is a fork.
"""

import itertools
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dsb_jax.training.checkpoints import Checkpoints


def state_of(step):
    """A state from which its step can be told: every array differs from step to step."""
    numbers = np.random.default_rng(step).normal(size=(2, 1000)).astype(np.float32)
    return {"step": jnp.int32(step), "numbers": jnp.asarray(numbers), "key": jax.random.key(step)}


def save_forever(folder, announced):
    with Checkpoints(folder, keep=1) as checkpoints:
        for step in itertools.count(max(checkpoints.steps(), default=0) + 1):
            os.write(announced, f"{step}\n".encode())
            checkpoints.save(step, state_of(step), {"step": step}, score=-step)


def last_begun(folder, seconds):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        save_forever(folder, write)
    os.close(write)
    with open(read) as announced:
        first = "".join(announced.readline() for _ in range(3))
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        begun = first + announced.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return begun.split()[-1]


if __name__ == "__main__":
    for seconds in sys.argv[2:]:
        print(last_begun(sys.argv[1], float(seconds)), flush=True)
        sys.stdin.readline()
