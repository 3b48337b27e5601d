"""Reachability of the Hugging Face Hub, so that a lack of network is found in two seconds.

The Hub's own libraries retry for half a minute. They read HF_ENDPOINT and HF_HUB_OFFLINE when they
are imported, and proxies from the environment as here.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from unittest import mock
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import datasets
import huggingface_hub

#: Time after which a host that does not answer counts as out of reach, in seconds.
PATIENCE = 1.5
_PORTS = {"http": 80, "https": 443}
_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def is_id(name: str) -> bool:
    """True for text that can be the name of a repository on the Hub."""
    return _ID.fullmatch(name) is not None and ".." not in name


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or huggingface.co."""
    return str(huggingface_hub.constants.ENDPOINT)


def is_offline() -> bool:
    """True if HF_HUB_OFFLINE is set."""
    return bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def unreachable() -> str | None:
    """The reason why the Hub cannot be asked; None if it, or the proxy to it, can be connected to.

    Takes 1.5 seconds at most.
    """
    if is_offline():
        return "HF_HUB_OFFLINE is set"
    host, port, proxied = _first_hop(endpoint())
    reasons: list[str] = []
    # Looking up a name has no timeout of its own.
    thread = threading.Thread(target=_connect, args=(host, port, reasons), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not reasons:
        reasons = [f"no answer in {PATIENCE} s"]
    if reasons[0]:
        which = f"the proxy {host}:{port}" if proxied else endpoint()
        return f"{which} cannot be reached: {reasons[0]}"
    return None


def _first_hop(url: str) -> tuple[str, int, bool]:
    """Host and port to connect to for `url`, and True if they are a proxy's."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(parts.hostname or ""):
        hop = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        return hop.hostname or "", hop.port or _PORTS.get(hop.scheme, 1080), True
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 443), False


def _connect(host: str, port: int, reasons: list[str]) -> None:
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
        reasons.append("")
    except OSError as error:
        reasons.append(error.strerror or str(error) or type(error).__name__)


def commit(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> str:
    """The commit that a repository's revision names now, of the cached copy if the Hub is away.

    Empty if neither knows it.
    """
    if not is_id(name):
        return ""
    if unreachable() is None:
        try:
            found = huggingface_hub.HfApi().repo_info(name, repo_type=kind, revision=revision)
            return str(found.sha)
        except Exception:  # loading it gives the reason
            return ""
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    folder = huggingface_hub.file_download.repo_folder_name(repo_id=name, repo_type=kind)
    reference = cache / folder / "refs" / (revision or "main")
    return reference.read_text().strip() if reference.is_file() else revision or ""


@contextmanager
def cached_only(only: bool = True) -> Iterator[None]:
    """In the block, the Hub's libraries take files from their caches and connect to nothing."""
    if not only:
        yield
        return
    with (
        mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True),
    ):
        yield
