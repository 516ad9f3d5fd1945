"""Draw docs/images/vision-examples.png: `python docs/vision_pictures.py`."""

import random
from pathlib import Path

from PIL import Image

from twllm.draw.charts import draw_bars, draw_line
from twllm.draw.menus import draw_menu
from twllm.draw.pen import SIDE
from twllm.draw.signs import draw_sign


def main() -> None:
    """Two rows of six pictures."""
    rng = random.Random(7)
    kinds = [draw_sign] * 6 + [draw_bars] * 2 + [draw_line, draw_menu, draw_menu, draw_menu]
    sheet = Image.new("RGB", (6 * SIDE, 2 * SIDE), "white")
    for number, draw in enumerate(kinds):
        sheet.paste(draw(rng).image, (number % 6 * SIDE, number // 6 * SIDE))
    sheet.resize((6 * SIDE * 2 // 3, 2 * SIDE * 2 // 3), Image.Resampling.LANCZOS).save(
        Path(__file__).parent / "images" / "vision-examples.png", optimize=True
    )


if __name__ == "__main__":
    main()
