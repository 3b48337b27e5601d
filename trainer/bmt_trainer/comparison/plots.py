"""Plots of results as PNG, by matplotlib: each a function from results to a figure, or to None
where the results hold nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bmt_trainer.comparison.tables import Result, Row, named, short
from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.intervals import wilson

_DPI = 130
# The mask in one colour of its own, as in the paper; then the others.
_COLOURS = {"bmt": "#1f5fbf", "full": "#c0392b", "base": "#444444", "wanda": "#8e6bbf"}
_OTHERS = ("#e08e0b", "#2e8b57", "#16a3a3", "#a0522d", "#7f8c8d", "#d0589a")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", ":", "-.")
_MEASURES = (
    ("effective_rank", "effective rank of ΔW", "directions"),
    ("spectrum_drift", "spectrum drift", "‖Δσ‖ / ‖σ‖"),
    ("overlap", "principal-weight overlap", "share of changed weights"),
)


def pyplot() -> Any:
    """matplotlib without a screen. Raises ConfigError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("plots need the package matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as found

    return found


def colours(methods: Sequence[str]) -> dict[str, str]:
    """One for each method, the same for the same methods."""
    found: dict[str, str] = {}
    others = iter(_OTHERS * (1 + len(methods) // len(_OTHERS)))
    for method in dict.fromkeys(methods):
        kind = method.partition("@")[0]
        taken = kind in _COLOURS and _COLOURS[kind] not in found.values()
        found[method] = _COLOURS[kind] if taken else next(others)
    return found


def styles(results: Sequence[Result]) -> dict[str, dict[str, str]]:
    """Colour, marker and line by the name of a run: runs of one method differ in the last two."""
    methods = {named(r): r["method"] for r in results}
    paint = colours(list(methods.values()))
    found: dict[str, dict[str, str]] = {}
    for label, method in methods.items():
        like = sum(style["color"] == paint[method] for style in found.values())
        found[label] = {
            "label": label,
            "color": paint[method],
            "marker": _MARKERS[like % len(_MARKERS)],
            "linestyle": _LINES[like % len(_LINES)],
        }
    return found


def accuracies(rows: Sequence[Row]) -> Any:
    """Accuracy of each method with its interval, a panel for each model."""
    rows = [row for row in rows if row.accuracy is not None]
    if not rows:
        return None
    models = list(dict.fromkeys(row.model for row in rows))
    most = max(sum(row.model == model for row in rows) for model in models)
    paint = colours([row.method for row in rows])
    figure, axes = pyplot().subplots(
        len(models), 1, figsize=(7.5, len(models) * (1.3 + 0.34 * most)), layout="constrained"
    )
    for axis, model in zip(_flat(axes), models, strict=True):
        chosen = [row for row in rows if row.model == model][::-1]
        for at, row in enumerate(chosen):
            assert row.accuracy is not None
            assert row.interval is not None
            low, high = row.interval
            value = 100 * row.accuracy
            error = _error([(row.accuracy, (low, high))])
            axis.barh(at, value, color=paint[row.method], height=0.62, alpha=0.85)
            axis.errorbar(value, at, xerr=error, color="black", capsize=3, linewidth=1)
        axis.set_yticks(range(len(chosen)), [_label(row) for row in chosen])
        axis.set_xlim(
            0, min(100.0, 1.12 * max(100 * row.interval[1] for row in chosen if row.interval) + 1)
        )
        axis.set_xlabel("accuracy, %, with 95 % interval")
        counts = {(row.datasets, row.total) for row in chosen}
        title = ", ".join(f"{d} data set{'s' * (d > 1)}, n = {n}" for d, n in sorted(counts)[:2])
        axis.set_title(f"{model}: {title}", fontsize=11)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    return figure


def sizes(rows: Sequence[Row]) -> Any:
    """Accuracy against the adapter's size, the first model's."""
    chosen = [r for r in rows if r.accuracy is not None and r.size > 0 and r.model == rows[0].model]
    if len(chosen) < 2:
        return None
    paint = colours([row.method for row in chosen])
    figure, axis = pyplot().subplots(figsize=(7.5, 4.4), layout="constrained")
    for at, row in enumerate(chosen):
        assert row.accuracy is not None
        assert row.interval is not None
        axis.errorbar(
            row.size,
            100 * row.accuracy,
            yerr=_error([(row.accuracy, row.interval)]),
            color=paint[row.method],
            marker=_MARKERS[at % len(_MARKERS)],
            markersize=7,
            capsize=3,
            linestyle="",
            label=_label(row),
        )
    _decades(axis, [row.size for row in chosen])
    axis.set(xlabel="adapter size by appendix B, MiB", ylabel="accuracy, %")
    axis.set_title(f"{chosen[0].model}: accuracy and size", fontsize=11)
    base = [r for r in rows if r.method == "base" and r.model == chosen[0].model and r.accuracy]
    if base and base[0].accuracy is not None:
        axis.axhline(100 * base[0].accuracy, color="#444444", linestyle="--", label="base")
    axis.grid(alpha=0.3, which="both")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def forgetting(results: Sequence[Result]) -> Any:
    """Forward KL and what is kept, over training, by method; a line for each run's data set."""
    tracked = [r for r in results if r.get("track")]
    if not tracked:
        return None
    places = list(dict.fromkeys((r["trainer"], r["dataset"]) for r in tracked))
    keeps = any("retention" in r["track"][-1] for r in tracked)
    looks = styles(tracked)
    figure, axes = pyplot().subplots(
        len(places),
        1 + keeps,
        figsize=(2.0 + 3.8 * (1 + keeps), 3.2 * len(places)),
        layout="constrained",
        squeeze=False,
    )
    for panels, place in zip(axes, places, strict=True):
        for result in (r for r in tracked if (r["trainer"], r["dataset"]) == place):
            rows = result["track"]
            style = looks[named(result)]
            steps = [row["step"] for row in rows]
            panels[0].plot(steps, [row["kl_token"] for row in rows], markersize=4, **style)
            if keeps and "retention" in rows[0]:
                kept = [100 * max(row["retention"], row["retention_lenient"]) for row in rows]
                panels[1].plot(steps, kept, markersize=4, **style)
        panels[0].set_yscale("symlog", linthresh=1e-3)
        panels[0].set(xlabel="step", ylabel="KL(base ‖ tuned), nats a token")
        panels[0].set_title(_wrapped(f"{place[0]}, {short(place[1])}"), fontsize=10)
        if keeps:
            panels[1].set(xlabel="step", ylabel="kept skill, %, lenient", ylim=(0, 100))
        for panel in panels:
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(alpha=0.3)
    _legend(figure, axes)
    return figure


def sparsity(results: Sequence[Result]) -> Any:
    """Deleted share of the whole network over training (Table 7)."""
    found = [(r, curve) for r in results if r.get("zeros") and (curve := _zeros(r))]
    if not found:
        return None
    figure, axis = pyplot().subplots(figsize=(7.5, 3.8), layout="constrained")
    paint = iter(_OTHERS * (1 + len(found) // len(_OTHERS)))
    for result, (steps, zeros) in found:
        share = [100 * z / result["parameters"] for z in zeros]
        label = _wrapped(f"{named(result)}, {result['trainer']}, {short(result['dataset'])}", 34)
        axis.plot(steps, share, label=label, color=next(paint))
    axis.set(xlabel="step", ylabel="deleted, % of all weights")
    axis.set_title("sparsity over training", fontsize=11)
    axis.set_ylim(0, 1.1 * max(max(zeros) * 100 / r["parameters"] for r, (_, zeros) in found))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return figure


def geometry(results: Sequence[Result]) -> Any:
    """The three measures by method: gate projections alone, and all modules (Fig. 3)."""
    found = [r for r in results if r.get("geometry")]
    if not found:
        return None
    several = len({r["dataset"] for r in found}) > 1
    names = [_wrapped(named(r) + f", {short(r['dataset'])}" * several, 30) for r in found]
    paint = colours([r["method"] for r in found])
    figure, axes = pyplot().subplots(
        1, 3, figsize=(9.8, 1.6 + 0.55 * len(found)), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.12)  # ticks of neighbours must not run together
    for axis, (key, title, unit) in zip(axes, _MEASURES, strict=True):
        for at, result in enumerate(found[::-1]):
            for offset, part, alpha in ((0.19, "gate", 0.95), (-0.19, "all", 0.45)):
                value = result["geometry"][part][key]
                colour = paint[result["method"]]
                if value is None:
                    beside = axis.get_yaxis_transform()
                    axis.text(0.02, at + offset, "none", va="center", fontsize=8, transform=beside)
                    continue
                axis.barh(at + offset, value, height=0.34, color=colour, alpha=alpha)
                # Beside its bar, but where a line at 0.5 would cross it.
                within = {"ha": "right", "color": "white" if part == "gate" else "black"}
                style = within if key == "overlap" else {"ha": "left"}
                axis.text(value, at + offset, f" {value:.3g} ", va="center", fontsize=8, **style)
        axis.set_yticks(range(len(found)), names[::-1] if axis is axes[0] else [""] * len(found))
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(unit)
        values = [r["geometry"][p][key] or 0 for r in found for p in ("gate", "all")]
        if key == "overlap":
            axis.axvline(0.5, color="black", linestyle=":", linewidth=1)
            axis.set_xlim(0, max(0.6, 1.2 * max(values)))
        elif max(values) > 0:
            _decades(axis, [v for v in values if v > 0], room=6)
        axis.set_ylim(-0.6, len(found) - 0.4)
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle("dark: gate projections; light: all modules; dotted: random", fontsize=10)
    return figure


def training(histories: Mapping[str, Result], title: str = "") -> Any:
    """What single runs saw by step: reward or loss, validation with its interval, deletions."""
    found = {name: history for name, history in histories.items() if history["steps"]}
    if not found:
        return None
    logged = [
        (key, label)
        for key, label in (("reward", "mean reward, 0 to 1"), ("loss", "loss"))
        if any(_logs(history) == key for history in found.values())
    ]
    width = 3.3 * (2 + len(logged))
    figure, axes = pyplot().subplots(1, 2 + len(logged), figsize=(width, 3.4), layout="constrained")
    panels = {key: axis for axis, (key, _) in zip(axes, logged, strict=False)}
    for name, history in found.items():
        steps, looks, reading = history["steps"], history["validation"], history["reading"]
        at, key = [s["step"] for s in steps], _logs(history)
        panels[key].plot(at, [s[key] for s in steps], label=name)
        shares = [v[reading] / v["total"] for v in looks]
        bounds = [wilson(v[reading], v["total"]) for v in looks]
        axes[-2].errorbar(
            [v["step"] for v in looks],
            [100 * share for share in shares],
            yerr=_error(list(zip(shares, bounds, strict=True))),
            marker="o",
            capsize=3,
        )
        axes[-1].plot(at, [s["zeros"] / 1000 for s in steps])
    for key, label in logged:
        panels[key].set(xlabel="step", ylabel=label)
    if "reward" in panels:
        panels["reward"].set_ylim(0, 1)
    axes[-2].set(xlabel="step", ylabel="validation, greedy, hard mask, %", ylim=(0, 100))
    axes[-1].set(xlabel="step", ylabel="deleted gates, thousands")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    if title:
        figure.suptitle(title, fontsize=11)
    if len(found) > 1:
        _legend(figure, axes)
    return figure


def _logs(history: Result) -> str:
    """What its trainer maximises or minimises: of GRPO, whose loss is near 0, the reward."""
    return "reward" if "reward" in history["steps"][0] else "loss"


def _error(found: Sequence[tuple[float, tuple[float, float]]]) -> list[list[float]]:
    """How far the interval of each share goes below and above it, in points; never below 0, which
    rounding would make of an interval that ends in its share."""
    return [
        [max(0.0, 100 * (share - low)) for share, (low, _) in found],
        [max(0.0, 100 * (high - share)) for share, (_, high) in found],
    ]


#: File name, title and what draws it from (results, rows).
PLOTS: Sequence[tuple[str, str, Callable[[Sequence[Result], Sequence[Row]], Any]]] = (
    ("accuracy", "Accuracy", lambda results, rows: accuracies(rows)),
    ("size", "Accuracy and adapter size", lambda results, rows: sizes(rows)),
    ("forgetting", "Distance from the base, and what is kept", lambda r, rows: forgetting(r)),
    ("sparsity", "Sparsity over training", lambda results, rows: sparsity(results)),
    ("geometry", "Geometry of updates", lambda results, rows: geometry(results)),
)


def png(figure: Any) -> bytes:
    """The picture's bytes; the figure is closed."""
    import io

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    pyplot().close(figure)
    return stream.getvalue()


def _zeros(result: Result) -> tuple[list[float], list[float]] | None:
    """Steps and zeros: of each step where the trainer logged them, else of the looks."""
    logged = result.get("logs", {}).get("zeros")
    if logged:
        return list(range(1, len(logged) + 1)), logged
    looks = result.get("track")
    return ([r["step"] for r in looks], [r["zeros"] for r in looks]) if looks else None


def _decades(axis: Any, values: Sequence[float], room: float = 1.5) -> None:
    """A logarithmic x axis over whole decades, so that ticks have room and there are two."""
    import math

    low = math.floor(math.log10(min(values) / 1.5))
    high = math.ceil(math.log10(max(values) * room))
    axis.set_xscale("log")
    axis.set_xlim(10.0**low, 10.0 ** max(high, low + 1))
    axis.xaxis.set_minor_formatter("")


def _legend(figure: Any, axes: Any) -> None:
    """One for all panels, beside them."""
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        lines, labels = axis.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=9
    )


def _label(row: Row) -> str:
    return f"{row.method}\n{row.changes}" if row.changes else row.method


def _wrapped(text: str, width: int = 42) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _flat(axes: Any) -> list[Any]:
    return list(axes.flat) if hasattr(axes, "flat") else [axes]
