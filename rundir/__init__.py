"""A run directory: its name, lock, files and checkpoints, and how data and model are rebuilt."""
