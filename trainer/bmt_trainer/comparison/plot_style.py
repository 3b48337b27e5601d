"""Style of plots: colors, markers, axes and legends, and the PNG of a figure."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from bmt_trainer.comparison.tables import Result, named
from bmt_trainer.errors import ConfigError

DPI = 130
# Methods that always have the same color; others take OTHER_COLORS in order.
COLORS = {"bmt": "#1f5fbf", "full": "#c0392b", "base": "#444444", "wanda": "#8e6bbf"}
OTHER_COLORS = ("#e08e0b", "#2e8b57", "#16a3a3", "#a0522d", "#7f8c8d", "#d0589a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")


def load_pyplot() -> Any:
    """matplotlib.pyplot with the Agg backend. Raises ConfigError if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("plots need the package matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def colors(methods: Sequence[str]) -> dict[str, str]:
    """A color for each method, the same for the same methods."""
    chosen: dict[str, str] = {}
    others = iter(OTHER_COLORS * (1 + len(methods) // len(OTHER_COLORS)))
    for method in dict.fromkeys(methods):
        kind = method.partition("@")[0]
        free = kind in COLORS and COLORS[kind] not in chosen.values()
        chosen[method] = COLORS[kind] if free else next(others)
    return chosen


def styles(results: Sequence[Result]) -> dict[str, dict[str, str]]:
    """Color, marker and line by a run's name; runs of one method differ in marker and line."""
    methods = {named(r): r["method"] for r in results}
    color = colors(list(methods.values()))
    chosen: dict[str, dict[str, str]] = {}
    for label, method in methods.items():
        same = sum(style["color"] == color[method] for style in chosen.values())
        chosen[label] = {
            "label": label,
            "color": color[method],
            "marker": MARKERS[same % len(MARKERS)],
            "linestyle": LINES[same % len(LINES)],
        }
    return chosen


def error_bars(shares: Sequence[tuple[float, tuple[float, float]]]) -> list[list[float]]:
    """Distances of each share to the ends of its interval, below and above, in percentage points.

    shares: (share, (low, high)), 0 to 1. Rounding may put an end on the wrong side of its share, so
    the distances are at least 0.
    """
    return [
        [max(0.0, 100 * (share - low)) for share, (low, _) in shares],
        [max(0.0, 100 * (high - share)) for share, (_, high) in shares],
    ]


def png(figure: Any) -> bytes:
    """The PNG file of a figure, which is closed."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    load_pyplot().close(figure)
    return stream.getvalue()


def whole_decades(axis: Any, values: Sequence[float], room: float = 1.5) -> None:
    """Give an axis a logarithmic x scale over at least one whole decade."""
    low = math.floor(math.log10(min(values) / 1.5))
    high = math.ceil(math.log10(max(values) * room))
    axis.set_xscale("log")
    axis.set_xlim(10.0**low, 10.0 ** max(high, low + 1))
    axis.xaxis.set_minor_formatter("")


def shared_legend(figure: Any, axes: Iterable[Any]) -> None:
    """Add one legend for all panels, below them."""
    handles: dict[str, Any] = {}
    for axis in axes:
        lines, labels = axis.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", frameon=False, fontsize=9
    )


def wrapped(text: str, width: int = 42) -> str:
    """The text in lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width))


def panels_of(axes: Any) -> list[Any]:
    """The panels of a figure as a list, also of a figure with one panel."""
    return list(axes.flat) if hasattr(axes, "flat") else [axes]
