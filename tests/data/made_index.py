"""Indices without shards: so many documents of each task and source, of lengths that are told."""

import numpy as np

from nextflow_jax.data.index import DocumentIndex, Keys


def make_index(counts, lengths=None, seed=0):
    """`counts` and mean `lengths` (20) by (task, source); documents lie in random order."""
    rng = np.random.default_rng(seed)
    tasks, sources = (tuple(sorted({pair[part] for pair in counts})) for part in (0, 1))
    rows = []
    for (task, source), count in counts.items():
        mean = (lengths or {}).get((task, source), 20)
        plain = rng.integers(mean // 2, mean + mean // 2 + 1, count)
        rows += [(tasks.index(task), sources.index(source), length) for length in plain]
    task, source, plain = np.asarray(rows, np.int32)[rng.permutation(len(rows))].T
    zeros = np.zeros(len(rows), np.int32)
    return DocumentIndex(
        keys=Keys.of(f"d{i}" for i in range(len(rows))), task=task, tasks=tasks, source=source, sources=sources,
        plain=plain, condition=zeros, context=zeros,
    )  # fmt: skip
