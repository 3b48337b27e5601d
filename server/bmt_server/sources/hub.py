"""Files of the Hugging Face Hub, or of another server with its routes (`HF_ENDPOINT`)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from huggingface_hub import constants, get_token, hf_hub_url

from bmt_server.errors import Forbidden
from bmt_server.settings import SettingsError
from bmt_server.sources.allow_list import AllowList
from bmt_server.sources.locations import HubFile, WebFile, parse_url
from bmt_server.sources.web import WebRequest

_OFFICIAL = ("https", "huggingface.co", 443)
# Where the Hub sends for large files.
_DOMAINS = ("huggingface.co", "hf.co")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def endpoint() -> WebFile:
    """The Hub's address: HF_ENDPOINT, or the official one. Raises SettingsError."""
    text = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        return parse_url(text)
    except Exception as error:
        raise SettingsError(f"HF_ENDPOINT is no address that imports can use: {error}") from None


def hub_request(file: HubFile, allowed: AllowList) -> tuple[WebRequest, Commit]:
    """The request for a file, with the operator's token for the Hub's own origin alone.

    The token is HF_TOKEN, or that of `hf auth login`. Over plain http it is not sent. Redirects may
    lead to the Hub, and to what the list of places has; of the official Hub also to its storage.
    """
    hub = endpoint()
    base = hub.shown.rstrip("/")
    url = hf_hub_url(file.repository, file.file, revision=file.revision or None, endpoint=base)
    token = get_token() if hub.scheme == "https" else None

    def may_visit(visited: WebFile) -> None:
        if visited.origin == hub.origin or allowed.has_url(visited):
            return
        if hub.origin == _OFFICIAL and _of_storage(visited):
            return
        raise Forbidden(
            f"{file.shown[:300]} redirects to {visited.host}, which is neither the Hub's nor among "
            "the places that this server imports from (--import-from)",
            code="source_not_allowed",
            param="source",
        )

    commit = Commit()
    return (
        WebRequest(
            start=parse_url(url),
            shown=file.shown,
            may_visit=may_visit,
            credentials={"Authorization": f"Bearer {token}"} if token else {},
            headers_seen=commit.see,
        ),
        commit,
    )


class Commit:
    """The commit that the Hub's answers name; empty if they name none."""

    def __init__(self) -> None:
        self.id = ""

    def see(self, fields: Mapping[str, str]) -> None:
        found = fields.get("x-repo-commit", "")
        if not self.id and _COMMIT.fullmatch(found):
            self.id = found


def _of_storage(file: WebFile) -> bool:
    known = any(file.host == d or file.host.endswith(f".{d}") for d in _DOMAINS)
    return known and file.scheme == "https" and file.port == 443
