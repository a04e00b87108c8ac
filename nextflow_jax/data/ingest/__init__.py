"""Ingest: sources of any format become a corpus, in parallel, restartable, with every dropped document counted."""
