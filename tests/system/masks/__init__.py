"""Masks in workers: more than their memory holds, and on nodes without a common disk."""
