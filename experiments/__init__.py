"""Experiments of the paper scaled to a small machine. Training runs take a recipe in `recipes/`."""
