"""Plots of results by matplotlib: functions from results to a figure, or to None without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bmt_trainer.comparison.plot_style import (
    MARKERS,
    OTHER_COLORS,
    colors,
    error_bars,
    load_pyplot,
    panels_of,
    shared_legend,
    styles,
    whole_decades,
    wrapped,
)
from bmt_trainer.comparison.tables import Result, Row, named, short
from bmt_trainer.evaluation.intervals import wilson
from bmt_trainer.masking.attach import CLOSED_GATES

# Inches: a page of 400 pixels shows a figure of this width with letters of 10 pixels.
WIDTH = 5.0
_MEASURES = (
    ("effective_rank", "effective rank of ΔW", "directions"),
    ("spectrum_drift", "spectrum drift", "‖Δσ‖ / ‖σ‖"),
    ("overlap", "principal-weight overlap", "share of changed weights"),
)


def accuracies(rows: Sequence[Row]) -> Any:
    """Accuracy of each method with its 95 % interval, one panel for each model."""
    rows = [row for row in rows if row.accuracy is not None]
    if not rows:
        return None
    models = list(dict.fromkeys(row.model for row in rows))
    most = max(sum(row.model == model for row in rows) for model in models)
    color = colors([row.method for row in rows])
    figure, axes = load_pyplot().subplots(
        len(models), 1, figsize=(WIDTH, len(models) * (1.3 + 0.34 * most)), layout="constrained"
    )
    for axis, model in zip(panels_of(axes), models, strict=True):
        chosen = [row for row in rows if row.model == model][::-1]
        for at, row in enumerate(chosen):
            assert row.accuracy is not None
            assert row.interval is not None
            low, high = row.interval
            value = 100 * row.accuracy
            error = error_bars([(row.accuracy, (low, high))])
            axis.barh(at, value, color=color[row.method], height=0.62, alpha=0.85)
            axis.errorbar(value, at, xerr=error, color="black", capsize=3, linewidth=1)
            edge = axis.get_yaxis_transform()
            axis.text(0.99, at, f"{value:.1f}", ha="right", va="center", fontsize=9, transform=edge)
        axis.set_yticks(range(len(chosen)), [_label(row) for row in chosen])
        axis.set_xlim(
            # Room for the values.
            0,
            1.25 * max(100 * row.interval[1] for row in chosen if row.interval) + 1,
        )
        axis.set_xlabel("accuracy, %, with 95 % interval")
        counts = {(row.datasets, row.total) for row in chosen}
        title = ", ".join(f"{d} data set{'s' * (d > 1)}, n = {n}" for d, n in sorted(counts)[:2])
        axis.set_title(wrapped(f"{model}: {title}", 48), fontsize=11)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    return figure


def sizes(rows: Sequence[Row]) -> Any:
    """Accuracy against adapter size, for the first model."""
    chosen = [r for r in rows if r.accuracy is not None and r.size > 0 and r.model == rows[0].model]
    if len(chosen) < 2:
        return None
    color = colors([row.method for row in chosen])
    height = 3.4 + 0.25 * len(chosen)
    figure, axis = load_pyplot().subplots(figsize=(WIDTH, height), layout="constrained")
    for at, row in enumerate(chosen):
        assert row.accuracy is not None
        assert row.interval is not None
        axis.errorbar(
            row.size,
            100 * row.accuracy,
            yerr=error_bars([(row.accuracy, row.interval)]),
            color=color[row.method],
            marker=MARKERS[at % len(MARKERS)],
            markersize=7,
            capsize=3,
            linestyle="",
            label=_label(row),
        )
    whole_decades(axis, [row.size for row in chosen])
    axis.set(xlabel="adapter size by appendix B, MiB", ylabel="accuracy, %")
    axis.set_title(wrapped(f"{chosen[0].model}: accuracy and size", 48), fontsize=11)
    base = [r for r in rows if r.method == "base" and r.model == chosen[0].model and r.accuracy]
    if base and base[0].accuracy is not None:
        axis.axhline(100 * base[0].accuracy, color="#444444", linestyle="--", label="base")
    axis.grid(alpha=0.3, which="both")
    shared_legend(figure, [axis])
    return figure


def forgetting(results: Sequence[Result]) -> Any:
    """Forward KL divergence and retention over training, one line for each run."""
    tracked = [r for r in results if r.get("track")]
    if not tracked:
        return None
    groups = list(dict.fromkeys((r["trainer"], r["dataset"]) for r in tracked))
    keeps = any("retention" in row for r in tracked for row in r["track"])  # the last may fail
    style_of = styles(tracked)
    rows_of_panels = len(groups) * (1 + keeps)
    figure, axes = load_pyplot().subplots(
        rows_of_panels,
        1,
        figsize=(WIDTH, 2.6 * rows_of_panels + 0.25 * len(style_of)),
        layout="constrained",
        squeeze=False,
    )
    for panels, group in zip(axes.reshape(len(groups), -1), groups, strict=True):
        for result in (r for r in tracked if (r["trainer"], r["dataset"]) == group):
            rows = result["track"]
            style = style_of[named(result)]
            steps = [row["step"] for row in rows]
            panels[0].plot(steps, [row["kl_token"] for row in rows], markersize=4, **style)
            kept = [row for row in rows if {"retention", "retention_lenient"} <= row.keys()]
            if keeps and kept:
                shares = [100 * max(row["retention"], row["retention_lenient"]) for row in kept]
                panels[1].plot([row["step"] for row in kept], shares, markersize=4, **style)
        panels[0].set_yscale("symlog", linthresh=1e-3)
        panels[0].set(xlabel="step", ylabel="KL(base ‖ tuned), nats a token")
        panels[0].set_title(wrapped(f"{group[0]}, {short(group[1])}"), fontsize=10)
        if keeps:
            panels[1].set(xlabel="step", ylabel="kept skill, %, lenient", ylim=(0, 100))
        for panel in panels:
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(alpha=0.3)
    shared_legend(figure, axes.flat)
    return figure


def sparsity(results: Sequence[Result]) -> Any:
    """Share of all weights whose gates are closed, over training (Table 7)."""
    curves = [(r, curve) for r in results if r.get("zeros") and (curve := _closed(r))]
    if not curves:
        return None
    height = 3.0 + 0.35 * len(curves)
    figure, axis = load_pyplot().subplots(figsize=(WIDTH, height), layout="constrained")
    colors_left = iter(OTHER_COLORS * (1 + len(curves) // len(OTHER_COLORS)))
    for result, (steps, closed) in curves:
        share = [100 * n / result["parameters"] for n in closed]
        label = wrapped(f"{named(result)}, {result['trainer']}, {short(result['dataset'])}", 34)
        axis.plot(steps, share, label=label, color=next(colors_left))
    axis.set(xlabel="step", ylabel="closed gates, % of all weights")
    axis.set_title("sparsity over training", fontsize=11)
    axis.set_ylim(0, 1.1 * max(max(closed) * 100 / r["parameters"] for r, (_, closed) in curves))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    shared_legend(figure, [axis])
    return figure


def geometry(results: Sequence[Result]) -> Any:
    """The three measures by method, of gate projections and of all modules (Fig. 3)."""
    measured = [r for r in results if r.get("geometry")]
    if not measured:
        return None
    several = len({r["dataset"] for r in measured}) > 1
    names = [wrapped(named(r) + f", {short(r['dataset'])}" * several, 30) for r in measured]
    color = colors([r["method"] for r in measured])
    figure, axes = load_pyplot().subplots(
        3, 1, figsize=(WIDTH, 0.6 + 3 * (1.1 + 0.55 * len(measured))), layout="constrained"
    )
    for axis, (key, title, unit) in zip(axes, _MEASURES, strict=True):
        for at, result in enumerate(measured[::-1]):
            for offset, part, alpha in ((0.19, "gate", 0.95), (-0.19, "all", 0.45)):
                value = result["geometry"][part][key]
                bar = color[result["method"]]
                if value is None:
                    edge = axis.get_yaxis_transform()
                    axis.text(0.02, at + offset, "none", va="center", fontsize=8, transform=edge)
                    continue
                axis.barh(at + offset, value, height=0.34, color=bar, alpha=alpha)
                # To the right of its bar, but within it if the line at 0.5 would cross the text.
                within = {"ha": "right", "color": "white" if part == "gate" else "black"}
                style = within if key == "overlap" else {"ha": "left"}
                axis.text(value, at + offset, f" {value:.3g} ", va="center", fontsize=8, **style)
        axis.set_yticks(range(len(measured)), names[::-1])
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(unit)
        values = [r["geometry"][p][key] or 0 for r in measured for p in ("gate", "all")]
        if key == "overlap":
            axis.axvline(0.5, color="black", linestyle=":", linewidth=1)
            axis.set_xlim(0, max(0.6, 1.2 * max(values)))
        elif max(values) > 0:
            whole_decades(axis, [v for v in values if v > 0], room=6)
        axis.set_ylim(-0.6, len(measured) - 0.4)
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle("dark: gate projections; light: all modules; dotted: random", fontsize=10)
    return figure


def training(histories: Mapping[str, Result], title: str = "") -> Any:
    """Single runs by step: reward or loss, validation with its 95 % interval, deletions.

    histories: contents of `.history.json` files by run name.
    """
    runs = {name: _whole(history) for name, history in histories.items()}
    runs = {name: history for name, history in runs.items() if history["steps"]}
    if not runs:
        return None
    logged = [
        (key, label)
        for key, label in (("reward", "mean reward"), ("loss", "loss"))
        if any(_logs(history) == key for history in runs.values())
    ]
    count = 2 + len(logged)
    height = 2.5 * count + 0.25 * len(runs)
    figure, axes = load_pyplot().subplots(count, 1, figsize=(WIDTH, height), layout="constrained")
    panels = {key: axis for axis, (key, _) in zip(axes, logged, strict=False)}
    for name, history in runs.items():
        steps, validations, reading = history["steps"], history["validation"], history["reading"]
        at, key = [s["step"] for s in steps], _logs(history)
        # A name that begins with an underscore is left out of legends.
        panels[key].plot(
            at,
            [s[key] for s in steps],
            label=name.replace("_", "\u2007_", 1) if name.startswith("_") else name,
        )
        shares = [v[reading] / v["total"] for v in validations]
        bounds = [wilson(v[reading], v["total"]) for v in validations]
        axes[-2].errorbar(
            [v["step"] for v in validations],
            [100 * share for share in shares],
            yerr=error_bars(list(zip(shares, bounds, strict=True))),
            marker="o",
            capsize=3,
        )
        axes[-1].plot(at, [s[CLOSED_GATES] / 1000 for s in steps])
    for key, label in logged:
        panels[key].set(xlabel="step", ylabel=label)
    if "reward" in panels:
        low, high = panels["reward"].get_ylim()
        panels["reward"].set_ylim(min(0.0, low), max(1.0, high))  # rewards may be of any size
    axes[-2].set(xlabel="step", ylabel="validation, greedy, hard mask, %", ylim=(0, 100))
    axes[-1].set(xlabel="step", ylabel="closed gates, thousands")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    if title:
        figure.suptitle(title, fontsize=11)
    if len(runs) > 1:
        shared_legend(figure, axes)
    return figure


def _whole(history: Result) -> Result:
    """The history without steps and validations that lack what is drawn of them."""
    steps = [s for s in history["steps"] if {"step", CLOSED_GATES} <= s.keys()]
    key = "reward" if any("reward" in s for s in steps) else "loss"
    validation = [v for v in history["validation"] if v.get("total") and history["reading"] in v]
    return {**history, "steps": [s for s in steps if key in s], "validation": validation}


def _logs(history: Result) -> str:
    """The logged value to plot: `reward` for GRPO, whose loss stays near 0, else `loss`."""
    return "reward" if "reward" in history["steps"][0] else "loss"


#: (file name, title, function of (results, rows)) of each plot.
PLOTS: Sequence[tuple[str, str, Callable[[Sequence[Result], Sequence[Row]], Any]]] = (
    ("accuracy", "Accuracy", lambda results, rows: accuracies(rows)),
    ("size", "Accuracy and adapter size", lambda results, rows: sizes(rows)),
    ("forgetting", "Distance from the base, and retention", lambda r, rows: forgetting(r)),
    ("sparsity", "Sparsity over training", lambda results, rows: sparsity(results)),
    ("geometry", "Geometry of updates", lambda results, rows: geometry(results)),
)


def _closed(result: Result) -> tuple[list[float], list[float]] | None:
    """Steps and numbers of closed gates: as the trainer logged them, else as tracked."""
    logged = result.get("logs", {}).get(CLOSED_GATES)
    if logged:
        return list(range(1, len(logged) + 1)), logged
    track = result.get("track")
    return ([r["step"] for r in track], [r[CLOSED_GATES] for r in track]) if track else None


def _label(row: Row) -> str:
    return f"{row.method}\n{row.changes}" if row.changes else row.method
