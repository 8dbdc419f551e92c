"""Plots as SVG inside a page: they take its colours, print sharp, and need nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

Point = tuple[float, float]

COLOURS = ("#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#e0a100", "#0c8599", "#c2255c", "#5f3dc4", "#74561b")
WIDTH, HEIGHT = 520, 300
TOP, BOTTOM = 12, 46
TICKS = 5
MOST_DECIMALS = 6
LETTER = 7
"""Width of a digit of the labels at most."""
NAME_AT, NAME_WIDTH, GAP = 14, 16, 7
"""Of the name of the upright axis, which is turned: where its middle is, and its height; room beside it and
beside the labels."""


def plot(
    series: Mapping[str, Sequence[Sequence[Point]]],
    *,
    x: str,
    y: str,
    colours: Mapping[str, str],
) -> str:
    """Points of each series and a line through the means of its groups.

    Args:
        series: for each name its groups, such as the seeds at one budget, each a few points.
        x, y: what the axes are; that of x begins at 0.
        colours: of each series.
    """
    points = [point for groups in series.values() for group in groups for point in group]
    if not points:
        return ""
    # What is spent or done begins at nothing; a single budget would be drawn apart by its last evaluations.
    across = _ticks([0, *(point[0] for point in points)])
    up = _ticks([point[1] for point in points])
    left = NAME_AT + NAME_WIDTH // 2 + 2 * GAP + LETTER * max(map(len, _labels(up)))
    right = WIDTH - max(2 * GAP, LETTER * len(_labels(across)[-1]) / 2)

    def place(point: Point) -> Point:
        share_x = (point[0] - across[0]) / (across[-1] - across[0])
        share_y = (point[1] - up[0]) / (up[-1] - up[0])
        return left + share_x * (right - left), HEIGHT - BOTTOM - share_y * (HEIGHT - TOP - BOTTOM)

    parts = [*_axes(across, up, x, y, place)]
    for name, groups in series.items():
        colour = colours[name]
        means = [place(_mean(group)) for group in groups if group]
        if len(means) > 1:
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in means)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for group in groups:
            for a, b in map(place, group):
                parts.append(
                    f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}" fill-opacity=".55">'
                    f"<title>{html.escape(name)}</title></circle>"
                )
    title = html.escape(f"{y} against {x}")
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        + "".join(parts)
        + "</svg>"
    )


def legend(colours: Mapping[str, str]) -> str:
    """What the colours stand for."""
    entries = (
        f'<span><i style="background: {colour}"></i>{html.escape(name)}</span>'
        for name, colour in colours.items()
    )
    return f'<p class="legend">{"".join(entries)}</p>'


def _axes(across: Sequence[float], up: Sequence[float], x: str, y: str, place: object) -> list[str]:
    assert callable(place)
    parts = []
    for value, label in zip(across, _labels(across), strict=True):
        a, b = place((value, up[0]))
        _, top = place((value, up[-1]))
        parts.append(f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{b:.1f}" y2="{top:.1f}"/>')
        parts.append(f'<text x="{a:.1f}" y="{b + 17:.1f}" text-anchor="middle">{label}</text>')
    for value, label in zip(up, _labels(up), strict=True):
        a, b = place((across[0], value))
        right, _ = place((across[-1], value))
        parts.append(f'<line x1="{a:.1f}" x2="{right:.1f}" y1="{b:.1f}" y2="{b:.1f}"/>')
        parts.append(f'<text x="{a - GAP:.1f}" y="{b + 4:.1f}" text-anchor="end">{label}</text>')
    middle = (place((across[0], up[0]))[0] + place((across[-1], up[0]))[0]) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x)}</text>')
    centre = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{NAME_AT}" y="{centre}" text-anchor="middle" transform="rotate(-90 {NAME_AT} {centre})">'
        f"{html.escape(y)}</text>"
    )
    return parts


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers that enclose the values."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - abs(low) * 0.1 - 1e-3, high + abs(high) * 0.1 + 1e-3
    rough = (high - low) / TICKS
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _labels(ticks: Sequence[float]) -> list[str]:
    """The ticks, with as many digits as tell them apart."""
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-6))
    if decimals > MOST_DECIMALS:
        return [f"{value:.3g}" for value in ticks]
    return [f"{value:,.{decimals}f}" for value in ticks]


def _mean(points: Sequence[Point]) -> Point:
    across, up = zip(*points, strict=True)
    return sum(across) / len(points), sum(up) / len(points)
