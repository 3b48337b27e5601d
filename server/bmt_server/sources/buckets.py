"""Objects of S3, read with the operator's credentials (`AWS_…`) from the operator's endpoint."""

from __future__ import annotations

import asyncio
import logging

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from bmt_server.ipc.object_store import ANSWER_S, cause, open_store
from bmt_server.sources.locations import BucketFile
from bmt_server.sources.web import Fetched, Received, forbidden, missing, too_large, unavailable

logger = logging.getLogger("vllm.bmt_server")

_PART_BYTES = 1 << 20


async def read_object(
    file: BucketFile, timeout_s: float, max_bytes: int, received: Received
) -> Fetched:
    """An object's bytes. Raises ApiError. The caller bounds the time as well."""
    try:
        store = await asyncio.to_thread(open_store, f"s3://{file.bucket}", timeout_s)
        async with asyncio.timeout(ANSWER_S):
            found = await obstore.get_async(store, file.key)
        if found.meta["size"] > max_bytes:
            raise too_large(file.shown, max_bytes)
        data = bytearray()
        async for part in found.stream(min_chunk_size=_PART_BYTES):
            if len(data) + len(part) > max_bytes:
                raise too_large(file.shown, max_bytes)
            received(len(part))
            data += part
        return Fetched(bytes(data), file.shown)
    except FileNotFoundError:
        raise missing(file.shown) from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        logger.warning("Import of %s refused: %s.", file.shown[:300], cause(error))
        raise forbidden(file.shown) from None
    except (BaseError, TimeoutError, OSError) as error:
        logger.warning("Import of %s failed: %s.", file.shown[:300], cause(error))
        raise unavailable(file.shown, "the object store does not answer") from None
