"""Which raw documents of a corpus are kept: steps on each alone, then duplicates and balance over all of them."""
