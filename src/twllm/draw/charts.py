"""Bar charts with their numbers printed above, and line charts that rise or fall."""

import random

from twllm.draw.pen import BLACK, COLOURS, SIDE, WHITE, Drawn, Pen

LETTERS = "ABCDE"
GREY = (150, 150, 150)


def draw_bars(rng: random.Random) -> Drawn:
    """Three to five bars, values from 1 to 9, all different."""
    count = rng.randint(3, 5)
    values = rng.sample(range(1, 10), count)
    names = rng.sample(list(COLOURS), count)
    pen = Pen(WHITE)
    base, step = 162.0, 176 / count
    pen.line([(6, base), (SIDE - 6, base)], 2, GREY)
    for n, (value, name) in enumerate(zip(values, names, strict=True)):
        x = 8 + step * (n + 0.5)
        top = base - value * 13.5
        pen.box(x - step * 0.32, top, x + step * 0.32, base, COLOURS[name])
        pen.text(x, top - 13, str(value), 28, BLACK, bold=0.8)
        pen.text(x, base + 15, LETTERS[n], 25, BLACK, bold=0.6)
    high, low = values.index(max(values)), values.index(min(values))
    asked = rng.randrange(count)
    parts = "，".join(f"{LETTERS[n]} {names[n]} {values[n]}" for n in range(count))
    questions = (
        ("chart count", "這張圖有幾根長條？", f"{count} 根。"),
        ("chart highest", rng.choice(("哪一根長條最高？", "最大的是哪一個？")), f"{LETTERS[high]}。"),
        ("chart lowest", rng.choice(("哪一根長條最短？", "最小的是哪一個？")), f"{LETTERS[low]}。"),
        ("chart value", f"{LETTERS[asked]} 的數值是多少？", f"{values[asked]}。"),
        ("chart colour", f"{LETTERS[asked]} 是什麼顏色？", f"{names[asked]}。"),
    )
    return Drawn(pen.finish(), f"長條圖，{count} 根：{parts}。", f"bars {parts}", questions)


def draw_line(rng: random.Random) -> Drawn:
    """A line over four or five points, which rises or falls as a whole."""
    count = rng.randint(4, 5)
    values = sorted(rng.sample(range(1, 10), count))
    rises = rng.random() < 0.5
    values = values if rises else values[::-1]
    name = rng.choice(list(COLOURS))
    pen = Pen(WHITE)
    base, step = 162.0, 176 / count
    pen.line([(6, base), (SIDE - 6, base)], 2, GREY)
    points = [(8 + step * (n + 0.5), base - value * 13.5) for n, value in enumerate(values)]
    pen.line(points, 4, COLOURS[name])
    for n, (x, y) in enumerate(points):
        pen.disc(x, y, 6, COLOURS[name])
        pen.text(x, y - 19, str(values[n]), 28, BLACK, bold=0.8)
        pen.text(x, base + 15, LETTERS[n], 25, BLACK, bold=0.6)
    asked = rng.randrange(count)
    trend = "上升" if rises else "下降"
    parts = "，".join(f"{LETTERS[n]} {value}" for n, value in enumerate(values))
    questions = (
        ("chart trend", "這條線是上升還是下降？", f"{trend}。"),
        ("chart count", "這條線有幾個點？", f"{count} 個。"),
        ("chart value", f"{LETTERS[asked]} 的數值是多少？", f"{values[asked]}。"),
        ("chart colour", "這條線是什麼顏色？", f"{name}。"),
    )
    return Drawn(pen.finish(), f"{name}的折線圖，{trend}：{parts}。", f"line {name} {parts}", questions)
