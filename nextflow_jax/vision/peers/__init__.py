"""Modules that exist so that published tokenizers run here as they were trained: towers, stems and TokenFlow itself."""
