"""Datasets on disk, long-tailed subsets, batches in a reproducible order, and what the device does to images.

Reading needs no TensorFlow: ArrayRecord files written by TFDS, decoded by OpenCV. A new dataset is a TFDS builder in
``builders``; everything else here works on any of them.
"""

from dsb_jax.data.datasets import load, names, spec
from dsb_jax.data.records import Split
from dsb_jax.data.specs import Spec

__all__ = ["Spec", "Split", "load", "names", "spec"]
