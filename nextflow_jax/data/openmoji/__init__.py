"""OpenMoji: about 3,900 captioned pictures whose names and code points hold real tasks (editing, frames, groups)."""
