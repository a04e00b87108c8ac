"""Corpora: documents as they came, pictures as files' bytes, in ArrayRecord files between ingest and extraction."""
