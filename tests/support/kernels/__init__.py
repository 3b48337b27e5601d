"""Tools for tests of the worker's kernels."""
