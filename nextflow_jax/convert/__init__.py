"""Weights in and out: flat dictionaries of arrays, checked strictly against what a configuration asks for."""
