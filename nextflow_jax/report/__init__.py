"""The report of a run: `python -m nextflow_jax.report RUN_DIR` writes one self-contained page, report/index.html."""
