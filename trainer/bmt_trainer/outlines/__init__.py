"""Outlines of checkpoints: all that configuration and headers tell, before a weight is read."""
