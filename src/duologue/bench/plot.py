"""Line plots as SVG, without anything from elsewhere."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

Line: TypeAlias = Sequence[tuple[float, float]]

PLOT_STYLE: Final = """
.plot { max-width: 900px; } .plot path { fill: none; stroke-width: 1.8; }
.c0 { stroke: #3b6fd1; fill: #3b6fd1; } .c1 { stroke: #d9822b; fill: #d9822b; } .c2 { stroke: #2e9d6a; fill: #2e9d6a; }
.c3 { stroke: #b04fc2; fill: #b04fc2; } .c4 { stroke: #c93c3c; fill: #c93c3c; } .c5 { stroke: #6b8e23; fill: #6b8e23; }
.c6 { stroke: #1f9fb5; fill: #1f9fb5; } .c7 { stroke: #9a7b4f; fill: #9a7b4f; } .c8 { stroke: #8a8a8a; fill: #8a8a8a; }
.plot rect { stroke: none; }
"""

_COLOURS: Final = 9
_WIDTH: Final = 900
_HEIGHT: Final = 260
_LEFT: Final = 60
_RIGHT: Final = 170
_BOTTOM: Final = 34
_TOP: Final = 10
_TICKS: Final = 6


def plot(title: str, lines: Mapping[str, Line], *, x: str, y: str, logarithmic: bool = False) -> str:
    """Return a plot of named lines, each of points (x, y); empty if there are none.

    Args:
        title: above it.
        lines: by their names in the legend.
        x: what the horizontal axis is, with its unit; it begins at 0.
        y: the same of the vertical one; it begins at 0 unless it is logarithmic.
        logarithmic: for latencies, which differ by orders of magnitude. Points of 0 are left out.
    """
    drawn = {name: [point for point in line if point[1] > 0 or not logarithmic] for name, line in lines.items()}
    drawn = {name: line for name, line in drawn.items() if line}
    if not drawn:
        return ""
    points = [point for line in drawn.values() for point in line]
    scale = _Scale(max(at for at, _ in points), [value for _, value in points], logarithmic=logarithmic)
    parts = [*_grid(scale, x, y)]
    for number, (name, line) in enumerate(drawn.items()):
        parts += _line(scale, number, name, line)
    label = html.escape(title, quote=True)
    figure = f"<svg class=plot viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img aria-label='{label}'>{''.join(parts)}</svg>"
    return f"<h2>{html.escape(title)}</h2>{figure}"


class _Scale:
    """Where values are on the picture."""

    def __init__(self, end: float, values: Sequence[float], *, logarithmic: bool) -> None:
        self.end = end or 1.0
        self.logarithmic = logarithmic
        self.least = 10 ** math.floor(math.log10(min(values))) if logarithmic else 0.0
        self.most = max(values) or 1.0
        if logarithmic:
            self.most = max(self.most * 1.1, self.least * 10)

    def x(self, at: float) -> float:
        return _LEFT + at / self.end * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(max(value, self.least) / self.least) / math.log(self.most / self.least)
        else:
            share = value / self.most
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

    def ticks(self) -> Iterator[float]:
        if not self.logarithmic:
            yield from _round_steps(self.most)
            return
        tick = self.least
        while tick <= self.most:
            yield from (value for value in (tick, 3 * tick) if value <= self.most)
            tick *= 10


def _round_steps(most: float) -> Iterator[float]:
    """Yield 0 and round numbers up to `most`, at most six of them."""
    raw = most / _TICKS
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    for number in range(int(most / step) + 1):
        yield number * step


def _grid(scale: _Scale, x: str, y: str) -> Iterator[str]:
    for tick in scale.ticks():
        at = scale.y(tick)
        yield f"<line class=grid x1={_LEFT} x2={_WIDTH - _RIGHT} y1={at:.1f} y2={at:.1f} />"
        yield f"<text x={_LEFT - 6} y={at + 4:.1f} text-anchor=end>{tick:g}</text>"
    for tick in _round_steps(scale.end):
        yield f"<text x={scale.x(tick):.1f} y={_HEIGHT - _BOTTOM + 16} text-anchor=middle>{tick:g}</text>"
    yield f"<text x={(_LEFT + _WIDTH - _RIGHT) / 2} y={_HEIGHT - 4} text-anchor=middle>{html.escape(x)}</text>"
    turned = f"transform='rotate(-90 12 {_HEIGHT / 2})'"
    yield f"<text x=12 y={_HEIGHT / 2} text-anchor=middle {turned}>{html.escape(y)}</text>"


def _line(scale: _Scale, number: int, name: str, line: Line) -> Iterator[str]:
    colour = f"c{number % _COLOURS}"
    places = [(scale.x(at), scale.y(value)) for at, value in line]
    path = " ".join(f"{'M' if not i else 'L'}{at:.1f} {value:.1f}" for i, (at, value) in enumerate(places))
    yield f"<path class={colour} d='{path}'><title>{html.escape(name)}</title></path>"
    if len(line) <= 40:
        yield from (f"<circle class={colour} cx={at:.1f} cy={value:.1f} r=2.5 />" for at, value in places)
    top = _TOP + 4 + 18 * number
    yield f"<rect class={colour} x={_WIDTH - _RIGHT + 14} y={top} width=12 height=4 />"
    yield f"<text x={_WIDTH - _RIGHT + 32} y={top + 6}>{html.escape(name)}</text>"
