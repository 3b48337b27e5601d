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
        len(models), 1, figsize=(7.5, len(models) * (1.3 + 0.34 * most)), layout="constrained"
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
    """Accuracy against adapter size, for the first model."""
    chosen = [r for r in rows if r.accuracy is not None and r.size > 0 and r.model == rows[0].model]
    if len(chosen) < 2:
        return None
    color = colors([row.method for row in chosen])
    figure, axis = load_pyplot().subplots(figsize=(7.5, 4.4), layout="constrained")
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
    axis.set_title(f"{chosen[0].model}: accuracy and size", fontsize=11)
    base = [r for r in rows if r.method == "base" and r.model == chosen[0].model and r.accuracy]
    if base and base[0].accuracy is not None:
        axis.axhline(100 * base[0].accuracy, color="#444444", linestyle="--", label="base")
    axis.grid(alpha=0.3, which="both")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def forgetting(results: Sequence[Result]) -> Any:
    """Forward KL divergence and retention over training, one line for each run."""
    tracked = [r for r in results if r.get("track")]
    if not tracked:
        return None
    groups = list(dict.fromkeys((r["trainer"], r["dataset"]) for r in tracked))
    keeps = any("retention" in r["track"][-1] for r in tracked)
    style_of = styles(tracked)
    figure, axes = load_pyplot().subplots(
        len(groups),
        1 + keeps,
        figsize=(2.0 + 3.8 * (1 + keeps), 3.2 * len(groups)),
        layout="constrained",
        squeeze=False,
    )
    for panels, group in zip(axes, groups, strict=True):
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
    shared_legend(figure, axes)
    return figure


def sparsity(results: Sequence[Result]) -> Any:
    """Share of all weights that are deleted, over training (Table 7)."""
    curves = [(r, curve) for r in results if r.get("zeros") and (curve := _zeros(r))]
    if not curves:
        return None
    figure, axis = load_pyplot().subplots(figsize=(7.5, 3.8), layout="constrained")
    colors_left = iter(OTHER_COLORS * (1 + len(curves) // len(OTHER_COLORS)))
    for result, (steps, zeros) in curves:
        share = [100 * z / result["parameters"] for z in zeros]
        label = wrapped(f"{named(result)}, {result['trainer']}, {short(result['dataset'])}", 34)
        axis.plot(steps, share, label=label, color=next(colors_left))
    axis.set(xlabel="step", ylabel="deleted, % of all weights")
    axis.set_title("sparsity over training", fontsize=11)
    axis.set_ylim(0, 1.1 * max(max(zeros) * 100 / r["parameters"] for r, (_, zeros) in curves))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
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
        1, 3, figsize=(9.8, 1.6 + 0.55 * len(measured)), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.12)  # ticks of neighboring panels must not touch
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
        axis.set_yticks(
            range(len(measured)), names[::-1] if axis is axes[0] else [""] * len(measured)
        )
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
    runs = {name: history for name, history in histories.items() if history["steps"]}
    if not runs:
        return None
    logged = [
        (key, label)
        for key, label in (("reward", "mean reward, 0 to 1"), ("loss", "loss"))
        if any(_logs(history) == key for history in runs.values())
    ]
    width = 3.3 * (2 + len(logged))
    figure, axes = load_pyplot().subplots(
        1, 2 + len(logged), figsize=(width, 3.4), layout="constrained"
    )
    panels = {key: axis for axis, (key, _) in zip(axes, logged, strict=False)}
    for name, history in runs.items():
        steps, validations, reading = history["steps"], history["validation"], history["reading"]
        at, key = [s["step"] for s in steps], _logs(history)
        panels[key].plot(at, [s[key] for s in steps], label=name)
        shares = [v[reading] / v["total"] for v in validations]
        bounds = [wilson(v[reading], v["total"]) for v in validations]
        axes[-2].errorbar(
            [v["step"] for v in validations],
            [100 * share for share in shares],
            yerr=error_bars(list(zip(shares, bounds, strict=True))),
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
    if len(runs) > 1:
        shared_legend(figure, axes)
    return figure


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


def _zeros(result: Result) -> tuple[list[float], list[float]] | None:
    """Steps and numbers of zeros: as the trainer logged them, else as tracked."""
    logged = result.get("logs", {}).get("zeros")
    if logged:
        return list(range(1, len(logged) + 1)), logged
    track = result.get("track")
    return ([r["step"] for r in track], [r["zeros"] for r in track]) if track else None


def _label(row: Row) -> str:
    return f"{row.method}\n{row.changes}" if row.changes else row.method
