"""Figures on pages against the results that are kept of them."""
