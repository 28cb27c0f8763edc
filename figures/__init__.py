"""The pictures: their common style, and one module for each figure."""
