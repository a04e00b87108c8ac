"""Measuring a bundle: metrics on pictures and texts, and the suite that runs them (`nextflow_jax.evaluate`)."""
