"""A text in one environment variable, compressed if it is long.

Linux passes on at most 128 KiB in one variable. An 8B model's gates take 3 kB of names, and those
of thousands of experts ten times the limit.
"""

from __future__ import annotations

import base64
import zlib

from bmt_server.setting_options import SettingsError

# Bytes that Linux passes on (MAX_ARG_STRLEN), less the name of the variable.
LONGEST = (1 << 17) - 64
_MARK = "zlib:"


def packed(text: str) -> str:
    """The text as `unpacked` takes it. Raises SettingsError if it is too long all the same."""
    if len(text) > LONGEST // 2:
        text = _MARK + base64.b85encode(zlib.compress(text.encode(), 9)).decode()
    if len(text) > LONGEST:
        raise SettingsError(
            f"the settings of this model take {len(text)} bytes, most of them the names of its "
            f"gates, and a process gets {LONGEST}; serve a model with fewer experts"
        )
    return text


def unpacked(text: str) -> str:
    """The text that `packed` got."""
    if not text.startswith(_MARK):
        return text
    return zlib.decompress(base64.b85decode(text.removeprefix(_MARK))).decode()
