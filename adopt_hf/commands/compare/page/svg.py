"""Line charts as SVG, drawn for one width in pixels: text keeps its size, and the colours are those of the style."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

HEIGHT = 230
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 34
POINTS = 160  # of a line at most


class Line(NamedTuple):
    """A line with its band.

    Args:
        color: The number of its colour in the style.
        is_dashed: Whether it is dashed.
        points: The places (x, y).
        band: The places (x, lowest, highest).
        dots: Single places (x, y).
    """

    color: int
    is_dashed: bool
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    dots: Sequence[tuple[float, float]] = ()


class Axis(NamedTuple):
    """An axis.

    Args:
        low: The value at its beginning.
        high: The value at its end.
        ticks: The values that are written at it, with their texts.
        is_log: Whether it is logarithmic.
    """

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Return the place of a value: 0 at the beginning, 1 at the end."""
        low, high, at = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        return 0.5 if high == low else (at - low) / (high - low)


def linear(low: float, high: float, count: int = 4) -> Axis:
    """Return an axis with round values."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    places = max(0, -math.floor(math.log10(step) + 1e-9) + (1 if round(step / size, 3) == 2.5 else 0))
    first = math.ceil(low / step - 1e-9)
    ticks = [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, [(tick, f"{tick:,.{places}f}") for tick in ticks])


def chart(width: int, x: Axis, y: Axis, lines: Sequence[Line], x_name: str, label: str, key: str) -> str:
    """Return the chart.

    Args:
        width: The width in pixels.
        x: The axis below.
        y: The axis at the left.
        lines: The lines; the last is drawn on top.
        x_name: The name of the axis below.
        label: A sentence for readers who do not see the chart.
        key: A name that no other chart of the page has.
    """
    inner, high = width - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(horizontal: float, vertical: float) -> str:
        return f"{LEFT + inner * x.share(horizontal):.1f},{TOP + high * (1 - y.share(vertical)):.1f}"

    out = [
        f'<svg viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">'
    ]
    out.append(
        f'<clipPath id="{key}"><rect x="{LEFT}" y="{TOP - 4}" width="{inner + 4}" height="{high + 8}"/></clipPath>'
    )
    for value, text in y.ticks:
        place = TOP + high * (1 - y.share(value))
        out.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        out.append(f'<text class="tick" x="{LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in x.ticks:
        place = LEFT + inner * x.share(value)
        end = "end" if place > width - RIGHT - 12 else "middle"
        out.append(f'<text class="tick" x="{place:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{end}">{text}</text>')
    out.append(
        f'<text class="axis" x="{LEFT + inner / 2:.0f}" y="{HEIGHT - 2}" text-anchor="middle">{escape(x_name)}</text>'
    )
    out.append(f'<g clip-path="url(#{key})">')
    for line in lines:
        if len(line.band) > 1:
            there = [at(place, top) for place, _, top in line.band]
            back = [at(place, bottom) for place, bottom, _ in reversed(line.band)]
            out.append(f'<polygon class="band c{line.color}" points="{" ".join(there + back)}"/>')
    for line in lines:
        dashed = " dashed" if line.is_dashed else ""
        places = " ".join(at(*point) for point in line.points)
        if len(line.points) > 1:
            out.append(f'<polyline class="line c{line.color}{dashed}" points="{places}"/>')
        for point in [*line.dots, *(line.points if len(line.points) == 1 else ())]:
            across, down = at(*point).split(",")
            out.append(f'<circle class="dot c{line.color}" cx="{across}" cy="{down}" r="3"/>')
    return "".join([*out, "</g></svg>"])


def thinned(points: Sequence[tuple[float, float, float, float]]) -> list[tuple[float, float, float, float]]:
    """Return at most POINTS of them, evenly spaced, with the last."""
    every = max(1, math.ceil(len(points) / POINTS))
    return list(points[::-1][::every][::-1])
