"""vLLM's `--root-path`: the path below which a proxy shows the server. Imports no vLLM."""

from __future__ import annotations

import re

from bmt_server.api.permissions import find_route
from bmt_server.vllm_integration.unsupported_flags import UnsupportedFlagError

_SEGMENT = re.compile(r"(?!\.+(/|$))[A-Za-z0-9._~-]+")


def checked_root_path(text: str | None) -> str:
    """The root path as routing wants it: empty, or with a slash at its start and none at its end.

    Raises UnsupportedFlagError for text that is no path, and for a path that begins as one of the
    server's own: the server takes requests with the root path and without it.
    """
    path = (text or "").strip("/")
    if not path:
        return ""
    segments = path.split("/")
    reason = ""
    if not all(_SEGMENT.fullmatch(segment) for segment in segments):
        reason = "it is a path such as /masks, of letters, digits and . _ ~ -"
    elif segments[0] == "v1" or any(find_route(m, f"/{segments[0]}") for m in ("GET", "POST")):
        reason = f"/{segments[0]} is a path of the server itself; choose another"
    if reason:
        raise UnsupportedFlagError(f"--root-path ({text!r}) cannot be used: {reason}")
    return f"/{path}"
