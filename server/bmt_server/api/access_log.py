"""Access log: one line and one span per request. Audit log: one line per change.

Lines have the caller's key and address, which uvicorn takes from a header of trusted proxies alone
(FORWARDED_ALLOW_IPS). None contains prompts, completions, keys or the query of the URL. With vLLM's
`--logging-config.formatter json` the line's fields are JSON fields.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from fastapi import Request

from bmt_server.api.canary.arm import Arm
from bmt_server.api.tracing import Span
from bmt_server.registry.schemas import Principal, Version

logger = logging.getLogger("vllm.bmt_server.requests")
audit_logger = logging.getLogger("vllm.bmt_server.audit")

_MAX_PATH_CHARACTERS = 200


@dataclass(slots=True)
class RequestRecord:
    """Log fields of one request, filled in as the request proceeds.

    path: as routing sees it. digest: the mask's full digest. status: 0 until a response starts.
    peer: address of the client. arm: of an alias that is split. left: the client has left before
    the answer was complete; vLLM's handlers end without an error then, some with a status of 200.
    """

    request_id: str
    method: str
    path: str
    span: Span
    peer: str = ""
    status: int = 0
    key_id: str = ""
    key_name: str = ""
    tenant: str = ""
    model: str = ""
    mask: str = ""
    digest: str = ""
    error: str = ""
    arm: Arm | None = None
    left: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def outcome(self) -> int:
        """Status of the answer; 0 if the client left before it was complete."""
        return 0 if self.left and self.status < 400 else self.status

    def set_principal(self, principal: Principal) -> None:
        """Record the authenticated key and its tenant."""
        self.key_id, self.tenant = principal.key_id, principal.tenant
        self.key_name = principal.key_name

    def set_model(self, model: str, version: Version | None) -> None:
        """Record the resolved model. version: None for the base model."""
        self.model = model if version is None else version.model
        self.mask = "" if version is None else version.name
        self.digest = "" if version is None else version.digest

    def end(self, *, quiet: bool = False) -> None:
        """Write the line and end the span. quiet: no line, as for probes."""
        seconds = time.monotonic() - self.started
        if self.span.is_recording:
            self.span.set_attributes(
                {
                    "url.path": self.path[:_MAX_PATH_CHARACTERS],
                    "http.response.status_code": self.status,
                    "gen_ai.request.model": self.model,
                    "error.type": self.error,
                    "bmt.request.id": self.request_id,
                    "bmt.key.id": self.key_id,
                    "client.address": self.peer,
                    "bmt.tenant": self.tenant,
                    "bmt.mask.name": self.mask,
                    "bmt.mask.digest": self.digest,
                }
            )
        self.span.end(failed=self.status >= 500 or not self.status)
        if quiet:
            return
        # Quoted, because a client must not be able to forge log lines.
        path = quote(self.path[:_MAX_PATH_CHARACTERS], safe="/:@")
        by = (self.model, self.key_id, _plain(self.peer), self.error)
        fields = (self.request_id, self.method, path, *by)
        logger.info(
            "%s: %d in %.3f s",
            " ".join(f for f in fields if f),
            self.status,
            seconds,
            extra={
                "request_id": self.request_id,
                "method": self.method,
                "path": path,
                "status": self.status,
                "seconds": round(seconds, 6),
                "key_id": self.key_id,
                "tenant": self.tenant,
                "peer": _plain(self.peer),
                "model": self.model,
                "mask_digest": self.digest,
                "error": self.error,
            },
        )


def audit(request: Request, action: str, what: str, **fields: Any) -> None:
    """Write the line of a change that has been made, with its caller.

    action: a word such as `publish`. what: the object, for people. fields: the change, for
    machines; those without a value are left out.
    """
    record: RequestRecord = request.scope["bmt.record"]
    given = {name: value for name, value in fields.items() if value not in (None, "", ())}
    shown = [f"{name}={_plain(str(value))}" for name, value in given.items()]
    name = f" ({_plain(record.key_name)})" if record.key_name else ""
    audit_logger.info(
        "%s",
        " ".join(
            [f"audit {action} {_plain(what)} by key {record.key_id}{name} of {record.tenant}"]
            + [f"from {_plain(record.peer) or 'unknown'} {record.request_id}", *shown]
        ),
        extra={
            "action": action,
            "object": what,
            "request_id": record.request_id,
            "key_id": record.key_id,
            "key_name": record.key_name,
            "tenant": record.tenant,
            "peer": _plain(record.peer),
            **given,
        },
    )


def _plain(text: str) -> str:
    """Text that cannot end a log line or look like another field of it."""
    return quote(text[:_MAX_PATH_CHARACTERS], safe="/:@,.[]*= ")
