"""Class rebalancing: labels with more documents than their cap keep a keyed sample of them."""

import numpy as np
from jaxtyping import Bool

from nextflow_jax.data.filters.columns import FingerprintColumns
from nextflow_jax.data.filters.config import BalanceConfig
from nextflow_jax.data.filters.hashes import NO_HASH, hash64, mix


def over_caps(
    columns: FingerprintColumns, config: BalanceConfig, kept: Bool[np.ndarray, "n"], seed: int
) -> Bool[np.ndarray, "n"]:
    """The documents that are too many for their label, among those `kept`.

    Which documents of a label stay depends on their keys and the seed, not on their order: those whose hash of both is
    lowest. So another corpus with the same documents keeps the same ones.

    Args:
      columns: of the corpus.
      config: the caps; the lower of both holds, at least 1.
      kept: documents that are still there.
      seed: of the ingest.
    """
    members = np.flatnonzero(kept & (columns.label != NO_HASH))
    over = np.zeros(len(columns), bool)
    if not members.size:
        return over
    keyed = mix(columns.key[members], np.uint64(hash64("balance", str(seed))))
    # Label after label, and inside each the documents in the order in which they are kept.
    members = members[np.lexsort((keyed, columns.label[members]))]
    _, starts, counts = np.unique(columns.label[members], return_index=True, return_counts=True)
    caps = [config.max_per_label] if config.max_per_label else []
    if config.max_times_median:
        caps.append(int(config.max_times_median * np.median(counts)))
    ranks = np.arange(len(members)) - np.repeat(starts, counts)
    over[members[ranks >= max(1, min(caps))]] = True
    return over
