"""Draws plots and the intervals of ratios as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Ours in one color, each baseline in its own; the traffic by the line.
_COLORS = ("#555555", "#0b6e4f", "#c8553d", "#2f4b8f", "#8a5a9e", "#b8860b")
_DPI = 150


def lines(plot: dict[str, Any], folder: Path) -> str:
    """Draw one `results.Plot`, given as JSON; returns the file's name in `folder`."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8.0, 4.8), layout="constrained")
    families: dict[str, str] = {}
    for series in plot["series"]:
        family, _, traffic = series["label"].rpartition(", ")
        family = family or series["label"]
        color = families.setdefault(family, _COLORS[len(families) % len(_COLORS)])
        plain = len(set(series["y"])) == 1 and len(series["y"]) == 2
        axes.plot(
            series["x"],
            series["y"],
            label=series["label"],
            color=color,
            linestyle=":" if plain else "--" if traffic == "Zipf" else "-",
            marker="" if plain else "s" if traffic == "Zipf" else "o",
            markersize=5,
        )
    if "x" in plot["log"]:
        axes.set_xscale("log")
        ticks = sorted({x for s in plot["series"] for x in s["x"]})
        axes.set_xticks(ticks, [f"{x:,.0f}" for x in ticks])
        axes.minorticks_off()
    if "y" in plot["log"]:
        axes.set_yscale("log")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(lambda y, _: f"{y:,.0f}")
    else:
        axes.set_ylim(bottom=0)
    axes.set(xlabel=plot["x_label"], ylabel=plot["y_label"], title=plot["title"])
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _save(figure, folder / plot["file"])


def intervals(entries: Sequence[dict[str, Any]], title: str, path: Path) -> str:
    """Ratios over the bare engine with their 95 % intervals, one a line."""
    pyplot = _pyplot()
    height = 1.2 + 0.32 * len(entries)
    figure, axes = pyplot.subplots(figsize=(8.0, height), layout="constrained")
    for place, entry in enumerate(reversed(entries)):
        low, high = entry["interval"]
        own = not entry["id"].startswith(("lora", "checkpoint", "prefill_checkpoint"))
        again = "base_over_base" in entry["id"]
        color = _COLORS[0] if again else _COLORS[1] if own else _COLORS[2]
        axes.plot([low, high], [place, place], color=color, linewidth=3, alpha=0.5)
        axes.plot(entry["value"], place, "o", color=color)
        axes.annotate(
            f"{entry['value']:.3f}",
            (entry["value"], place),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.axvline(1.0, color="#999999", linewidth=1)
    axes.set_yticks(range(len(entries)), [e["note"] for e in reversed(entries)], fontsize=9)
    axes.set_ylim(-0.6, len(entries) - 0.2)
    axes.set(xlabel="tokens/s over bare vLLM, median and 95 % interval", title=title)
    axes.grid(True, axis="x", alpha=0.3)
    return _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, and none may be there
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    _pyplot().close(figure)
    return path.name
