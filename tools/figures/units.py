"""Units of figures, as pages write them."""

from __future__ import annotations

#: Units by what they measure, with their size in the first of a row.
SIZES = {
    "time": {
        **dict.fromkeys(("s", "second", "seconds"), 1.0),
        **{"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3},
        **dict.fromkeys(("min", "minute", "minutes"), 60.0),
        **dict.fromkeys(("h", "hour", "hours"), 3600.0),
        **dict.fromkeys(("day", "days"), 86400.0),
    },
    "bytes": {
        **dict.fromkeys(("byte", "bytes"), 1.0),
        **dict.fromkeys(("kB", "KB"), 1e3),
        **{"MB": 1e6, "GB": 1e9, "TB": 1e12},
        **{"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40},
    },
    "share": {
        **dict.fromkeys(("share", "fraction"), 1.0),
        **dict.fromkeys(("%", "percent", "per cent"), 0.01),
    },
}
_OTHERS = (
    *("tok/s", "tokens/s", "tokens a second", "requests/s", "requests a second", "kB/s", "MB/s"),
    *("GB/s", "KiB/s", "MiB/s", "points", "pp", "times", "fold", "nats"),
)
#: Units whose numbers are figures, for a regular expression; the longer ones first.
UNITS = "|".join(
    sorted({*_OTHERS, *(u for of in SIZES.values() for u in of)} - {"share", "fraction"}, key=len)[
        ::-1
    ]
    # Not the sign of a product, as in 1024 × 1024.
    + [r"×(?!\s*\d)"]
)


def wrong(kept: str, scale: float, printed: str) -> str | None:
    """A fault of the unit on a page, where the result is in `kept` and the page has it `scale`d.

    Nothing is known of units that are not in SIZES, nor of a scale that is no ratio of two of
    them, such as that of a figure by mask.
    """
    sizes = next((of for of in SIZES.values() if kept in of), None)
    if sizes is None or not any(printed in of for of in SIZES.values()):
        return None
    if printed not in sizes:
        return f"{printed} on the page, {kept} in the result"
    wanted = sizes[kept] / sizes[printed]
    ratios = [a / b for a in sizes.values() for b in sizes.values()]
    if _near(scale, wanted) or not any(_near(scale, ratio) for ratio in ratios):
        return None
    return f"{printed} on the page, and {kept} in the result times {scale:g} is not that"


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * abs(other)
