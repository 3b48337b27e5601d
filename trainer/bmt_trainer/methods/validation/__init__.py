"""Validation in training: scores of examples set aside, the best mask so far, an early stop."""
