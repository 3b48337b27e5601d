"""Expiry times of API keys and of masks of training runs: read strictly, stored in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from bmt_server.errors import BadRequest

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_expiry(text: str, now: datetime | None = None) -> str:
    """Time in UTC, ISO 8601, of a time with its zone or of a duration as in `30d`.

    Units are m, h, d and w. Raises BadRequest for any other text, and for a time in the past.
    """
    now = now or datetime.now(UTC)
    try:
        if duration := re.fullmatch(r"([0-9]{1,6})([mhdw])", text.strip()):
            at = now + timedelta(**{_UNITS[duration[2]]: int(duration[1])})
        else:
            at = datetime.fromisoformat(text.strip())
            if at.tzinfo is None:
                raise BadRequest(
                    f"expires is {text!r}, a time without a zone; write it as in "
                    f"{now:%Y-%m-%d}T12:00:00+00:00 or as a duration, 30d",
                    param="expires",
                )
        at = at.astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        raise BadRequest(
            f"expires is {text!r}; give a duration (90m, 12h, 30d, 4w) or an ISO 8601 time with a "
            "zone",
            param="expires",
        ) from None
    if at <= now:
        raise BadRequest(
            f"expires is {text!r}, which is past: it is {now.isoformat(timespec='seconds')}",
            param="expires",
        )
    return at.isoformat(timespec="seconds")


def parse_duration(text: str, param: str) -> float:
    """Seconds of a duration as in `30d`. Raises BadRequest."""
    duration = re.fullmatch(r"([0-9]{1,6})([mhdw])", text.strip())
    if duration is None:
        raise BadRequest(f"{param} is {text!r}; give a duration (90m, 12h, 30d, 4w)", param=param)
    return timedelta(**{_UNITS[duration[2]]: int(duration[1])}).total_seconds()


def read_expiry(stored: str) -> datetime | None:
    """A stored time; None for text that is no time with a zone, as early builds took."""
    try:
        at = datetime.fromisoformat(stored)
        return None if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def has_expired(stored: str) -> bool:
    """True after a stored time, and for text that is no time with a zone."""
    at = read_expiry(stored)
    return at is None or at <= datetime.now(UTC)
