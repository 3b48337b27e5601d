"""huggingface_hub, which is optional: its client, the address of the Hub, and the token."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from bmt_client._errors import Unavailable, UsageError

from .failures import no_token
from .places import HubPlace

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def require() -> Any:
    """The module huggingface_hub. Raises UsageError if it is not installed."""
    try:
        import huggingface_hub.constants
    except ImportError as error:
        raise UsageError(
            f"places of the Hub need huggingface_hub ({error}); pip install 'bmt-adapters[hub]'",
            code="hub_library",
        ) from None
    return huggingface_hub


def require_push(place: HubPlace) -> None:
    """Raise BmtClientError if a push cannot succeed here: no library, no token, no network wanted.

    Asks no server, so it costs nothing before long work.
    """
    library = require()
    _check_file(place)
    if library.constants.HF_HUB_OFFLINE:
        raise Unavailable(
            f"nothing can be pushed to {place}: HF_HUB_OFFLINE is set; unset it",
            code="hub_offline",
            retryable=False,
        )
    address = endpoint()
    if not _keeps_secrets(address):
        raise UsageError(
            f"HF_ENDPOINT is {address}: a token is not sent over http:// to another machine; use "
            "https://",
            code="hub_insecure",
        )
    if not library.get_token():
        raise no_token(place)


def open_api(*, to_write: bool, place: HubPlace) -> Any:
    """An `HfApi` of the Hub. Without a token, or over plain http elsewhere, one that sends none.

    Raises BmtClientError as `require_push` does, if it is to write.
    """
    library = require()
    if to_write:
        require_push(place)
    address = endpoint()
    # For a Hub without it, the library would send the token of huggingface.co to anything.
    token = library.get_token() if _keeps_secrets(address) else None
    return library.HfApi(endpoint=address, token=token or False, library_name="bmt-client")


@contextmanager
def quiet() -> Iterator[None]:
    """In the block, the library shows no progress bars and no notes of what is no news here."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    shown = not are_progress_bars_disabled()
    logger = logging.getLogger("huggingface_hub.hf_api")
    disable_progress_bars()
    logger.addFilter(_is_news)
    try:
        yield
    finally:
        logger.removeFilter(_is_news)
        if shown:
            enable_progress_bars()


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("No files have been modified")


def endpoint() -> str:
    """The Hub's address without a final '/': HF_ENDPOINT, or the official one.

    Raises UsageError.
    """
    address = os.environ.get("HF_ENDPOINT") or str(require().constants.ENDPOINT)
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an IPv6 address, a port that is no number
        known = False
    if not known:
        raise UsageError(
            f"HF_ENDPOINT is {address[:200]!r}, which is no address; write it as https://host or "
            "https://host:port, or unset it for huggingface.co",
            code="hub_endpoint",
        )
    return address.rstrip("/")


def _keeps_secrets(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme == "https" or (parts.hostname or "") in _LOOPBACK


def _check_file(place: HubPlace) -> None:
    if place.file is not None and not place.file.endswith(".bmt"):
        raise UsageError(
            f"{place} names a file that is no .bmt file; masks are pushed as .bmt files, which "
            "`pull` looks for",
            code="hub_place",
        )
