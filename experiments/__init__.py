"""Experiments after the paper, scaled to a small machine. Each has a recipe in `recipes/`."""
