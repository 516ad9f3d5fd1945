"""A canvas with the few things our pictures need: smooth shapes, Latin text and digits, two Han characters as strokes.

Pillow's built-in typeface has no Han, and a system's fonts are not ours to count on, so 停 and 元 are polylines written here.
Everything is drawn at twice the size and made smaller, which is all the smoothing there is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIDE = 192  # pixels of a picture
SCALE = 2
Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "紅色": (208, 32, 44), "橙色": (240, 134, 20), "黃色": (248, 208, 32), "綠色": (36, 148, 76),
    "藍色": (24, 92, 184), "紫色": (128, 60, 160),
}  # fmt: skip
WHITE, BLACK = (255, 255, 255), (24, 24, 24)

STROKES: dict[str, Sequence[Sequence[Point]]] = {  # in a square of 16
    "停": (
        ((4, 1), (2, 6)), ((3, 5), (3, 15)), ((10.5, 0.5), (10.5, 2.5)), ((6, 3), (15, 3)),
        ((8, 4.7), (13, 4.7), (13, 7), (8, 7), (8, 4.7)), ((6, 10.3), (6, 8.7), (15, 8.7), (15, 10.3)),
        ((7.5, 11.2), (13.5, 11.2)), ((10.5, 11.2), (10.5, 15), (9, 14.3)),
    ),
    "元": (
        ((4, 3), (12, 3)), ((2, 7), (14, 7)), ((6, 7), (5.5, 11), (2, 15)),
        ((10, 7), (10, 14), (14.5, 14), (14.5, 11.5)),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A picture, what it shows (one sentence), its content (equal for two that show the same), questions with answers."""

    image: Image.Image
    caption: str
    content: str
    questions: tuple[tuple[str, str, str], ...]  # (kind, question, answer)


@lru_cache(maxsize=64)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


class Pen:
    """A square canvas; coordinates are those of the finished picture."""

    def __init__(self, background: Colour) -> None:
        self._image = Image.new("RGB", (SIDE * SCALE, SIDE * SCALE), background)
        self._draw = ImageDraw.Draw(self._image)

    def finish(self) -> Image.Image:
        """The picture."""
        return self._image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=fill)

    def regular(self, x: float, y: float, radius: float, corners: int, turn: float, fill: Colour) -> None:
        """A regular polygon; `turn` in degrees, 0: a corner to the right."""
        angles = [math.radians(turn + 360 * n / corners) for n in range(corners)]
        self.polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles], fill)

    def disc(self, x: float, y: float, width: float, fill: Colour, height: float | None = None) -> None:
        """An ellipse of half axes `width` and `height` (None: a circle)."""
        tall = width if height is None else height
        self._draw.ellipse(
            [(x - width) * SCALE, (y - tall) * SCALE, (x + width) * SCALE, (y + tall) * SCALE], fill=fill
        )

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour, round: float = 0) -> None:
        """A rectangle, its corners rounded."""
        self._draw.rounded_rectangle(
            [left * SCALE, top * SCALE, right * SCALE, bottom * SCALE], round * SCALE, fill=fill
        )

    def line(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A polyline with round joints and ends."""
        at = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(at, fill=fill, width=max(1, round(width * SCALE)), joint="curve")
        half = width * SCALE / 2
        for x, y in at:
            self._draw.ellipse([x - half, y - half, x + half, y + half], fill=fill)

    def arrow(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A polyline with a head at its end."""
        self.line(points, width, fill)
        (x0, y0), (x, y) = points[-2:]
        length = math.hypot(x - x0, y - y0) or 1
        dx, dy = (x - x0) / length, (y - y0) / length
        size = width * 1.7
        tip = (x + dx * size * 1.2, y + dy * size * 1.2)
        self.polygon([tip, (x - dy * size, y + dx * size), (x + dy * size, y - dx * size)], fill)

    def text(self, x: float, y: float, text: str, size: float, fill: Colour, bold: float = 0) -> None:
        """Latin letters and digits, centred."""
        self._draw.text(
            (x * SCALE, y * SCALE), text, fill=fill, font=_font(round(size * SCALE)), anchor="mm",
            stroke_width=round(bold * SCALE), stroke_fill=fill,
        )  # fmt: skip

    def han(self, x: float, y: float, character: str, size: float, fill: Colour) -> None:
        """A Han character that we have strokes for, centred."""
        unit = size / 16
        for stroke in STROKES[character]:
            self.line([(x + (a - 8) * unit, y + (b - 8) * unit) for a, b in stroke], unit * 1.8, fill)
