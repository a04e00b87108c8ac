"""Ahead of time: programs compiled for chips that are not there, what they need of them, and how fast they could be."""
