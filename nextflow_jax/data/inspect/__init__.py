"""Looking into shards and corpora: counts, a check of every record, and a page of samples."""
