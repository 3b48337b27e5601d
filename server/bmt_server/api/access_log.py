"""Access log: one log line and one span per request, with its key, its mask and its outcome.

Neither contains prompts, completions, keys or the query of the URL. With vLLM's
`--logging-config.formatter json` the line's fields are JSON fields.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from urllib.parse import quote

from bmt_server.api.tracing import Span
from bmt_server.registry.schemas import Principal, Version

logger = logging.getLogger("vllm.bmt_server.requests")

_MAX_PATH_CHARACTERS = 200


@dataclass(slots=True)
class RequestRecord:
    """Log fields of one request, filled in as the request proceeds.

    path: as routing sees it. digest: the mask's full digest. status: 0 until a response starts.
    """

    request_id: str
    method: str
    path: str
    span: Span
    status: int = 0
    key_id: str = ""
    tenant: str = ""
    model: str = ""
    mask: str = ""
    digest: str = ""
    error: str = ""
    started: float = field(default_factory=time.monotonic)

    def set_principal(self, principal: Principal) -> None:
        """Record the authenticated key and its tenant."""
        self.key_id, self.tenant = principal.key_id, principal.tenant

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
        fields = (self.request_id, self.method, path, self.model, self.key_id, self.error)
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
                "model": self.model,
                "mask_digest": self.digest,
                "error": self.error,
            },
        )
