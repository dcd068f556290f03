"""The trainer: a config becomes an experiment, the loop runs it, and the workdir keeps what came of it."""

from dsb_jax.training.config import base_config
from dsb_jax.training.loop import train

__all__ = ["base_config", "train"]
