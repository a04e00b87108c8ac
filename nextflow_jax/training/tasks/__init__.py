"""The tasks: what each kind of experiment trains, behind the one protocol of nextflow_jax/training/task.py."""
