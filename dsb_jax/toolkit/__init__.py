"""What semantic scale tells about data, without training: ``python -m dsb_jax.toolkit``, and the same as functions."""
