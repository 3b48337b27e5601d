"""Engines, servers and load generators as processes of their own."""
