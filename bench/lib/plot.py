"""Line plots as SVG, which is plain text."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 260, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 62, 44
COLOURS = ("#2563eb", "#d97706", "#059669")
GREY = "#808080"


@dataclass(frozen=True)
class Panel:
    """One figure: lines by name, each of points."""

    title: str
    lines: dict[str, list[tuple[float, float]]]


def plot(title: str, below: str, panels: list[Panel]) -> str:
    """All panels beside each other, with one title and one legend."""
    width = WIDTH * len(panels)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'
            ' font-family="sans-serif" font-size="11">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        _text(LEFT, 18, title, size=13),
    ]
    at = LEFT
    for number, name in enumerate(panels[0].lines):
        parts.append(f'<rect x="{at}" y="27" width="10" height="10" fill="{COLOURS[number]}"/>')
        parts.append(_text(at + 14, 36, name))
        at += 40 + 7 * len(name)
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate({number * WIDTH} 0)">', *_panel(panel, below), "</g>"]
    return "\n".join([*parts, "</svg>"])


def _panel(panel: Panel, below: str) -> list[str]:
    points = [point for line in panel.lines.values() for point in line]
    x_step, y_step = (_step(max(point[axis] for point in points)) for axis in (0, 1))
    x_end, y_end = (
        step * max(1, ceil(max(point[axis] for point in points) / step)) for axis, step in ((0, x_step), (1, y_step))
    )

    def x(value: float) -> float:
        return round(LEFT + value / x_end * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - value / y_end * (HEIGHT - TOP - BOTTOM), 1)

    parts = [_text(LEFT, TOP - 8, panel.title)]
    for number in range(round(y_end / y_step) + 1):
        value = number * y_step
        parts.append(f'<path d="M{x(0)} {y(value)}H{x(x_end)}" stroke="{GREY}" stroke-opacity="0.3"/>')
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:g}", anchor="end"))
    for number in range(round(x_end / x_step) + 1):
        parts.append(_text(x(number * x_step), HEIGHT - BOTTOM + 16, f"{number * x_step:g}", anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, below, anchor="middle"))
    for colour, line in zip(COLOURS, panel.lines.values(), strict=False):
        way = " ".join(f"{x(a)},{y(b)}" for a, b in line)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(a)}" cy="{y(b)}" r="3" fill="{colour}"/>' for a, b in line]
    return parts


def _text(x: float, y: float, text: str, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _step(largest: float) -> float:
    """A round number that fits four to eight times."""
    if largest <= 0:
        return 1
    rough = largest / 4
    power = 10.0 ** floor(log10(rough))
    return next(power * factor for factor in (5, 2, 1) if power * factor <= rough)
