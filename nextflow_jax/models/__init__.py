"""The decoder: one transformer over interleaved text and image tokens."""
