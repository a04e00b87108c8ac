"""Worker processes of the pipeline: what each does before it builds batches.

grain starts them with "spawn", never "fork": a fork of a process with JAX's threads may hang. It imports JAX in them,
for its trees alone; here they are kept from ever starting an accelerator, which belongs to the process that trains.
"""

import multiprocessing
import multiprocessing.connection
import os
import threading

import jax


def start_worker(index: int, count: int) -> None:
    """Prepares worker `index` of `count`, before anything is unpickled in it that may use JAX."""
    del index, count
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    threading.Thread(target=_end_with_parent, name="nextflow_jax-parent", daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that started it was killed: grain's workers would wait for it forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
