"""One line of log and one span for each request: who asked, which mask answered, how it ended.

Neither has prompts, answers, keys or what a client put into its URL's query. With
`--logging-config.formatter json`, vLLM's own flag, the line's fields are JSON's.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from urllib.parse import quote

from bmt_server.api.tracing import Span
from bmt_server.registry.schemas import Principal, Version

logger = logging.getLogger("vllm.bmt_server.requests")

_PATH_SHOWN = 200


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request so far. path: as routing sees it; digest: the whole of it."""

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
    began: float = field(default_factory=time.monotonic)

    def asked_by(self, principal: Principal) -> None:
        self.key_id, self.tenant = principal.key_id, principal.tenant

    def answered_by(self, model: str, version: Version | None) -> None:
        """version: None for the base model."""
        self.model = model if version is None else version.model
        self.mask = "" if version is None else version.name
        self.digest = "" if version is None else version.digest

    def end(self, *, quiet: bool = False) -> None:
        """The response has ended. quiet: no line, as for probes."""
        seconds = time.monotonic() - self.began
        if self.span.kept:
            self.span.set(
                {
                    "url.path": self.path[:_PATH_SHOWN],
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
        # Quoted: whoever asks must not write lines of this log.
        path = quote(self.path[:_PATH_SHOWN], safe="/:@")
        known = (self.request_id, self.method, path, self.model, self.key_id, self.error)
        told = " ".join(x for x in known if x)
        logger.info(
            "%s: %d in %.3f s",
            told,
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
