"""Benchmarks for a machine with a GPU: one command for all, and arithmetic that needs none."""
