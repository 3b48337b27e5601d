"""Validation and the course of training: steps, rates, losses, early stops."""
