"""Helpers of tests that train."""
