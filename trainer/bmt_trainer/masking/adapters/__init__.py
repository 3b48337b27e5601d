"""Masks in the forms of other adapter libraries."""
