"""Manifests of families in the registry: which quantized checkpoints were made from a base.

    {bmt}:families   hash: fingerprint of the base -> manifest, JSON (`quantization/family.py`)

Texts here: what is in them is for the reader, as of any file that it is given.
"""

from __future__ import annotations

from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.connection import BULK_S, RegistryConnection

_KEY = PREFIX + "families"


async def put_family(connection: RegistryConnection, base: str, text: str) -> None:
    """Keep the manifest of a base, in the place of an earlier one. Raises RegistryDown."""
    await connection.call(lambda: connection.quick.hset(_KEY, base, text))


async def family_texts(connection: RegistryConnection) -> list[bytes]:
    """All manifests. Raises RegistryDown."""
    found: list[bytes] = await connection.call(lambda: connection.bulk.hvals(_KEY), BULK_S)
    return found
