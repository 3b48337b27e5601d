"""Experiments that a plain comparison cannot express, by name in `reproduce/*.yaml`."""
