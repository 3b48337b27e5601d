"""Embedded registry of `bmt-server`: a Valkey or Redis of one host, durable on its disk."""

from pathlib import Path

from bmt_server.registry.embedded.binary import Binary, EmbeddedError, find_binary
from bmt_server.registry.embedded.valkey import EmbeddedValkey

__all__ = ["Binary", "EmbeddedError", "EmbeddedValkey", "binary_path", "find_binary"]


def binary_path() -> Path:
    """Path of the program that `find_binary` chooses. Raises EmbeddedError."""
    return find_binary().path
