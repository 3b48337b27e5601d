"""Experiments on parts of masks: controls, doses, two masks together."""
