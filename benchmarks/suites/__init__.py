"""Measurements, one file for each subject."""
