"""Alternatives timed in turn in one run, and what is printed of them."""

import statistics
import sys
import time

import jax
import numpy as np


def in_turn(alternatives, rounds):
    """The seconds of each in every round; in turn, there and back, so that whatever slows the machine slows all."""
    times = {name: [] for name in alternatives}
    start = time.perf_counter()
    order = list(alternatives)
    for done in range(rounds):
        for name in order:
            run = alternatives[name]
            repeats = getattr(run, "repeats", 1)
            begin = time.perf_counter()
            for _ in range(repeats):
                result = run()
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - begin) / repeats)
        order.reverse()
        progress(f"round {done + 1}/{rounds}", start, done + 1, rounds)
    return times


def table(title, times, base):
    """The median of each, and of its ratios to ``base`` within a round the median and the quartiles."""
    print(f"\n{title}\n{'':40} {'ms':>10} {'ratio':>8} {'quartiles':>16}")
    for name, seconds in times.items():
        low, ratio, high = np.percentile(np.divide(seconds, times[base]), (25, 50, 75))
        spread = "" if name == base else f"{low:8.4f} {high:7.4f}"
        print(f"{name:40} {1e3 * statistics.median(seconds):10.2f} {ratio:8.4f} {spread:>16}", flush=True)


def progress(what, begin, done, steps):
    """A line that the next one overwrites."""
    if sys.stderr.isatty():
        left = (time.perf_counter() - begin) / done * (steps - done)
        print(f"\r\033[K{what}, ETA {left:.0f} s ", end="", file=sys.stderr, flush=True)


def mib(size):
    return f"{size / 2**20:,.1f} MiB"


def machine():
    return f"jax {jax.__version__} on {jax.device_count()} {jax.devices()[0].device_kind}"
