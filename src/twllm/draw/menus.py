"""Menus of night-market stalls: what is sold as a little picture, the price in digits and 元."""

import random
from collections.abc import Callable

from twllm.draw.pen import BLACK, COLOURS, Drawn, Pen

Icon = Callable[[Pen, float, float], None]
PAPER = ((255, 250, 232), (250, 240, 240), (240, 248, 240), (255, 255, 255))
PRICES = range(20, 100, 5)


def _tea(pen: Pen, x: float, y: float) -> None:
    pen.polygon([(x - 13, y - 12), (x + 13, y - 12), (x + 9, y + 18), (x - 9, y + 18)], (206, 164, 120))
    pen.line([(x + 2, y - 12), (x + 6, y - 20)], 3, COLOURS["綠色"])
    for dx, dy in ((-5, 12), (1, 14), (6, 11), (-2, 7), (4, 6)):
        pen.disc(x + dx, y + dy, 2.6, BLACK)


def _cutlet(pen: Pen, x: float, y: float) -> None:
    pen.disc(x, y, 21, (206, 136, 40), 14)
    pen.disc(x - 6, y - 3, 3, (232, 178, 84))
    pen.disc(x + 7, y + 3, 4, (232, 178, 84))


def _tofu(pen: Pen, x: float, y: float) -> None:
    for dx, dy in ((-11, -8), (9, -8), (-1, 9)):
        pen.box(x + dx - 9, y + dy - 8, x + dx + 9, y + dy + 8, (150, 108, 52))
    pen.disc(x + 15, y + 11, 5, COLOURS["綠色"])


def _oyster(pen: Pen, x: float, y: float) -> None:
    pen.disc(x, y, 22, (244, 226, 170), 15)
    pen.disc(x - 7, y - 2, 7, COLOURS["黃色"])
    for dx, dy in ((6, -5), (11, 4), (2, 7)):
        pen.disc(x + dx, y + dy, 4, (124, 132, 124))
    pen.line([(x - 14, y + 8), (x - 4, y + 10)], 3, COLOURS["綠色"])


def _balls(pen: Pen, x: float, y: float) -> None:
    for n, (dx, dy) in enumerate(((-12, 7), (1, 7), (13, 7), (-5, -5), (7, -5))):
        pen.disc(x + dx, y + dy, 7.5, COLOURS["橙色"] if n % 2 else COLOURS["紫色"])


def _tanghulu(pen: Pen, x: float, y: float) -> None:
    pen.line([(x - 22, y + 6), (x + 24, y - 6)], 2.5, (150, 110, 60))
    for n in range(4):
        pen.disc(x - 15 + 10 * n, y + 4 - 2.6 * n, 6.5, COLOURS["紅色"])


def _ice(pen: Pen, x: float, y: float) -> None:
    pen.polygon([(x - 19, y + 4), (x, y - 19), (x + 19, y + 4)], (176, 214, 240))
    pen.polygon([(x - 21, y + 4), (x + 21, y + 4), (x + 12, y + 18), (x - 12, y + 18)], COLOURS["藍色"])
    pen.disc(x, y - 15, 4, COLOURS["紅色"])


def _corn(pen: Pen, x: float, y: float) -> None:
    pen.disc(x, y, 23, COLOURS["黃色"], 9)
    for n in range(-2, 3):
        pen.line([(x + 8 * n, y - 6), (x + 8 * n, y + 6)], 1.5, (190, 140, 20))
    pen.polygon([(x - 23, y), (x - 8, y - 11), (x - 12, y + 11)], COLOURS["綠色"])


ITEMS: dict[str, Icon] = {
    "珍珠奶茶": _tea, "雞排": _cutlet, "臭豆腐": _tofu, "蚵仔煎": _oyster,
    "地瓜球": _balls, "糖葫蘆": _tanghulu, "刨冰": _ice, "烤玉米": _corn,
}  # fmt: skip


def draw_menu(rng: random.Random) -> Drawn:
    """Two to four dishes with different prices."""
    count = rng.randint(2, 4)
    names = rng.sample(list(ITEMS), count)
    prices = rng.sample(list(PRICES), count)
    pen = Pen(rng.choice(PAPER))
    pen.box(0, 0, 192, 9, COLOURS["紅色"])
    height = 176 / count
    for n, (name, price) in enumerate(zip(names, prices, strict=True)):
        y = 14 + height * (n + 0.5)
        ITEMS[name](pen, 40, y)
        pen.text(110, y, str(price), 44, BLACK, bold=1)
        pen.han(166, y, "元", 26, BLACK)
    asked = rng.randrange(count)
    other = rng.choice([name for name in ITEMS if name not in names])
    sold = rng.random() < 0.5
    cheap, dear = prices.index(min(prices)), prices.index(max(prices))
    place = rng.randrange(count)
    parts = "、".join(f"{name} {price} 元" for name, price in zip(names, prices, strict=True))
    questions = (
        ("menu count", "這張菜單有幾樣？", f"{count} 樣。"),
        ("menu price", f"{names[asked]}多少錢？", f"{prices[asked]} 元。"),
        ("menu sold", f"有賣{names[asked] if sold else other}嗎？", "有。" if sold else "沒有。"),
        ("menu place", f"第{'一二三四'[place]}樣是什麼？", f"{names[place]}。"),
        ("menu cheapest", "最便宜的是什麼？", f"{names[cheap]}。")
        if rng.random() < 0.5
        else ("menu dearest", "最貴的是什麼？", f"{names[dear]}。"),
    )
    return Drawn(pen.finish(), f"菜單，{count} 樣：{parts}。", f"menu {parts}", questions)
