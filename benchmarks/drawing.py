"""Draws panels with lines over time into one picture, with nothing but Pillow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, COLUMNS, SCALE = 430, 220, 3, 2
"""Of a panel in the picture; it is drawn larger, so that lines are smooth."""
LEFT, TOP, RIGHT, BOTTOM = 58, 34, 14, 42
COLORS = ("#3274d9", "#e0752d", "#56a64b", "#8f3bb8")
INK, GRID, PAPER = "#24292e", "#e3e6ea", "#ffffff"
GAP = 8.0
"""Seconds without a value after which a line is broken."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Some lines under a title; time in seconds."""

    title: str
    unit: str
    lines: Mapping[str, Points]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An instant that is marked on every panel."""

    time: float
    name: str
    color: str


def write(target: Path, panels: Sequence[Panel], *, marks: Sequence[Mark]) -> None:
    """Draw the panels, row by row."""
    rows = math.ceil(len(panels) / COLUMNS)
    image = Image.new("RGB", (WIDTH * COLUMNS * SCALE, (HEIGHT * rows + 26) * SCALE), PAPER)
    draw = ImageDraw.Draw(image)
    moments = [moment for panel in panels for points in panel.lines.values() for moment, _ in points]
    span = min(moments), max(moments)
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        _panel(draw, panel, marks, span, (column * WIDTH, row * HEIGHT))
    _legend(draw, [(mark.name, mark.color) for mark in marks], (LEFT, HEIGHT * rows + 4))
    small = image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.LANCZOS)
    small.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def _panel(
    draw: ImageDraw.ImageDraw, panel: Panel, marks: Sequence[Mark], span: tuple[float, float], at: tuple[int, int]
) -> None:
    left, top = at[0] + LEFT, at[1] + TOP
    right, bottom = at[0] + WIDTH - RIGHT, at[1] + HEIGHT - BOTTOM
    values = [value for points in panel.lines.values() for _, value in points if math.isfinite(value)]
    step = _step(max(values, default=1.0) or 1.0, panel.unit)
    most = step * max(1, math.ceil(max(values, default=1.0) / step))

    def place(moment: float, value: float) -> tuple[float, float]:
        across = (moment - span[0]) / max(span[1] - span[0], 1e-9)
        return (left + across * (right - left)) * SCALE, (bottom - value / most * (bottom - top)) * SCALE

    _text(draw, panel.title, (left, at[1] + 8), size=13)
    for number in range(round(most / step) + 1):
        height = place(span[0], number * step)[1]
        draw.line([(left * SCALE, height), (right * SCALE, height)], fill=GRID, width=SCALE)
        _text(draw, shown(number * step, panel.unit), (left - 6, height / SCALE), anchor="rm")
    for mark in marks:
        edge = place(mark.time, 0.0)[0]
        draw.line([(edge, top * SCALE), (edge, bottom * SCALE)], fill=mark.color, width=SCALE)
    for color, points in zip(COLORS, panel.lines.values(), strict=False):
        for piece in _pieces(points):
            draw.line([place(*point) for point in piece], fill=color, width=2 * SCALE, joint="curve")
    for share in (0.0, 0.5, 1.0):
        moment = span[0] + share * (span[1] - span[0])
        anchor = {0.0: "la", 0.5: "ma", 1.0: "ra"}[share]
        _text(draw, f"{moment:.0f} s", (place(moment, 0.0)[0] / SCALE, bottom + 3), anchor=anchor)
    _legend(draw, list(zip(panel.lines, COLORS, strict=False)), (left, bottom + 20))


def shown(value: float, unit: str) -> str:
    """A number as an axis has it."""
    if unit == "bytes":
        power = _power_of_1024(value)
        return f"{value / 1024**power:g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    if unit == "percentunit":
        return f"{value:.1%}" if value < 0.1 and value else f"{value:.0%}"
    text = f"{value / 1000:g}k" if value >= 1000 else f"{value:.3g}"
    return f"{text} s" if unit == "s" else text


def _power_of_1024(value: float) -> int:
    return min(4, int(math.log(value, 1024))) if value >= 1 else 0


def _step(most: float, unit: str) -> float:
    """A round distance between grid lines, for about four of them."""
    if unit == "bytes":
        scale = 1024.0 ** _power_of_1024(most / 4)
        return float(scale * 2.0 ** math.ceil(math.log2(most / 4 / scale)))
    power: float = 10.0 ** math.floor(math.log10(most / 4))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * 4.0001 >= most)


def _pieces(points: Points) -> list[list[tuple[float, float]]]:
    """A line, broken where there were no values."""
    pieces: list[list[tuple[float, float]]] = []
    for point in points:
        if not math.isfinite(point[1]):
            continue
        if not pieces or point[0] - pieces[-1][-1][0] > GAP:
            pieces.append([])
        pieces[-1].append(point)
    return [piece if len(piece) > 1 else [*piece, (piece[0][0] + 0.5, piece[0][1])] for piece in pieces]


def _legend(draw: ImageDraw.ImageDraw, entries: Sequence[tuple[str, str]], at: tuple[int, int]) -> None:
    across = float(at[0])
    for name, color in dict(entries).items():
        draw.rectangle([across * SCALE, (at[1] + 5) * SCALE, (across + 12) * SCALE, (at[1] + 8) * SCALE], fill=color)
        _text(draw, name, (across + 16, at[1]))
        across += 28 + draw.textlength(name, font=_font(10)) / SCALE


def _text(draw: ImageDraw.ImageDraw, text: str, at: tuple[float, float], *, size: int = 10, anchor: str = "la") -> None:
    draw.text((at[0] * SCALE, at[1] * SCALE), text, fill=INK, font=_font(size), anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size * SCALE)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
