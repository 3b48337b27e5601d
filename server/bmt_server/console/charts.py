"""Curves of a job and bars of usage, as numbers of an inline SVG; templates draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 160
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 8, 10, 22
#: Points that a curve has at most; of more, each drawn one is the mean of its neighbors.
MAX_POINTS = 240


@dataclass(frozen=True)
class Tick:
    """A line across the chart with its value."""

    y: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A measure of a job over its steps. points: of a polyline; last: the newest value."""

    name: str
    points: str
    ticks: tuple[Tick, ...]
    first_step: int
    last_step: int
    last: float
    end_x: float
    end_y: float


@dataclass(frozen=True)
class Bar:
    """One bar with its value."""

    x: float
    y: float
    width: float
    height: float
    label: str
    value: float


def curves(steps: Sequence[Mapping[str, object]]) -> list[Curve]:
    """A curve for each measure of rows with `step`; the first that a row has come first."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(steps, key=lambda row: _number(row.get("step")) or 0):
        step = _number(row.get("step"))
        if step is None:
            continue
        for name, value in row.items():
            number = _number(value)
            if name != "step" and number is not None:
                series.setdefault(name, []).append((int(step), number))
    return [_curve(name, points) for name, points in series.items()]


def bars(values: Sequence[tuple[str, float]]) -> list[Bar]:
    """Bars of labeled values that are not negative, over a chart of twice the width."""
    if not values:
        return []
    most = max(value for _, value in values) or 1.0
    apart = 2 * WIDTH / len(values)
    room = HEIGHT - _TOP - _BOTTOM
    found: list[Bar] = []
    for at, (label, value) in enumerate(values):
        height = value / most * room
        x, y = at * apart + apart * 0.1, _TOP + room - height
        found.append(
            Bar(round(x, 1), round(y, 1), round(apart * 0.8, 1), round(height, 1), label, value)
        )
    return found


def _curve(name: str, points: list[tuple[int, float]]) -> Curve:
    drawn = _thinned(points)
    low, high = min(v for _, v in drawn), max(v for _, v in drawn)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    first, last = drawn[0][0], drawn[-1][0]
    span = max(1, last - first)

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (step - first) / span * (WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - value) / (high - low) * (HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    at = [place(*point) for point in drawn]
    ticks = tuple(
        Tick(place(first, value)[1], f"{value:.3g}") for value in (high, (high + low) / 2, low)
    )
    return Curve(
        name=name,
        points=" ".join(f"{x},{y}" for x, y in at),
        ticks=ticks,
        first_step=points[0][0],
        last_step=points[-1][0],
        last=points[-1][1],
        end_x=at[-1][0],
        end_y=at[-1][1],
    )


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    apart = math.ceil(len(points) / MAX_POINTS)
    if apart == 1:
        return points
    groups = [points[at : at + apart] for at in range(0, len(points), apart)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
