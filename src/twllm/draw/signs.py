"""Road signs as they stand in Taiwan: shapes and colours of 道路交通標誌標線號誌設置規則 (prohibition, warning, instruction).

Drawn plainly, as a child would; not to scale. Not covered: signs with long words, route markers, distance plates.
"""

import random

from twllm.draw.pen import BLACK, COLOURS, SIDE, WHITE, Drawn, Pen

RED, BLUE = COLOURS["紅色"], COLOURS["藍色"]
ROADSIDE = ((206, 224, 238), (222, 232, 214), (232, 226, 214), (214, 214, 220), (196, 212, 204))
LIMITS = (20, 30, 40, 50, 60, 70, 80, 90, 100, 110)
LEAST = (40, 50, 60, 70, 80)
ARROWS = {"左": ((0.35, 0.4), (0.35, -0.1), (-0.3, -0.1)), "右": ((-0.35, 0.4), (-0.35, -0.1), (0.3, -0.1))}
# name -> (shape, ground, border)
LOOK = {
    "prohibition": ("圓形", "白色", "紅色"), "instruction": ("圓形", "藍色", "藍色"), "warning": ("正三角形", "白色", "紅色"),
    "yield": ("倒三角形", "白色", "紅色"), "stop": ("八角形", "紅色", "白色"), "entry": ("圓形", "紅色", "紅色"), "one way": ("長方形", "藍色", "藍色"),
}  # fmt: skip


def draw_sign(rng: random.Random) -> Drawn:
    """One sign somewhere near the middle."""
    pen = Pen(rng.choice(ROADSIDE))
    r = rng.uniform(66, 76)
    x, y = (SIDE / 2 + rng.uniform(-5, 5) for _ in range(2))
    pen.line([(x, y), (x, SIDE)], 7, (128, 132, 136))
    kind = rng.choices(["limit", "least", "no", "go", "warn", "other"], [9, 3, 3, 3, 3, 3])[0]
    name, family, more = {"limit": _limit, "least": _least, "no": _no, "go": _go, "warn": _warn, "other": _other}[kind](
        pen, rng, x, y, r
    )
    shape, ground, border = LOOK[family]
    caption = f"{shape}的交通標誌，{ground}底{f'、{border}邊' if border != ground else ''}：{name}。"
    questions = [
        ("sign name", rng.choice(("這是什麼交通標誌？", "這個標誌是什麼意思？")), f"{name}。"),
        ("sign shape", "這個標誌是什麼形狀？", f"{shape}。"),
        ("sign colour", "這個標誌的底是什麼顏色？", f"{ground}。"),
        *more,
    ]
    return Drawn(pen.finish(), caption, f"sign {name}", tuple(questions))


Told = tuple[str, str, list[tuple[str, str, str]]]


def _ring(pen: Pen, x: float, y: float, r: float) -> None:
    pen.disc(x, y, r, RED)
    pen.disc(x, y, r * 0.8, WHITE)


def _limit(pen: Pen, rng: random.Random, x: float, y: float, r: float) -> Told:
    value = rng.choice(LIMITS)
    _ring(pen, x, y, r)
    pen.text(x, y, str(value), r * 0.8, BLACK, bold=1.6)
    asked = [("sign number", q, f"{value} 公里。") for q in ("這裡最快可以開多快？", "標誌上的數字是多少？")]
    return f"最高速限 {value} 公里", "prohibition", asked


def _least(pen: Pen, rng: random.Random, x: float, y: float, r: float) -> Told:
    value = rng.choice(LEAST)
    pen.disc(x, y, r, BLUE)
    pen.text(x, y - r * 0.08, str(value), r * 0.8, WHITE, bold=1.6)
    pen.line([(x - r * 0.45, y + r * 0.55), (x + r * 0.45, y + r * 0.55)], r * 0.09, WHITE)
    return f"最低速限 {value} 公里", "instruction", [("sign number", "標誌上的數字是多少？", f"{value} 公里。")]


def _no(pen: Pen, rng: random.Random, x: float, y: float, r: float) -> Told:
    what = rng.choice(("左轉", "右轉", "進入"))
    if what == "進入":
        pen.disc(x, y, r, RED)
        pen.box(x - r * 0.65, y - r * 0.16, x + r * 0.65, y + r * 0.16, WHITE)
        return "禁止進入", "entry", []
    _ring(pen, x, y, r)
    pen.arrow([(x + a * r * 0.8, y + b * r) for a, b in ARROWS[what[0]]], r * 0.16, BLACK)
    pen.line([(x - r * 0.6, y - r * 0.6), (x + r * 0.6, y + r * 0.6)], r * 0.13, RED)
    return f"禁止{what}", "prohibition", [("sign direction", "箭頭指向哪一邊？", f"{what[0]}邊。")]


def _go(pen: Pen, rng: random.Random, x: float, y: float, r: float) -> Told:
    way = rng.choice(("左", "右", "直"))
    pen.disc(x, y, r, BLUE)
    if way == "直":
        pen.arrow([(x, y + r * 0.55), (x, y - r * 0.25)], r * 0.18, WHITE)
        return "僅准直行", "instruction", [("sign direction", "箭頭指向哪一邊？", "前方。")]
    pen.arrow([(x + a * r, y + b * r) for a, b in ARROWS[way]], r * 0.18, WHITE)
    return f"僅准{way}轉", "instruction", [("sign direction", "箭頭指向哪一邊？", f"{way}邊。")]


def _warn(pen: Pen, rng: random.Random, x: float, y: float, r: float) -> Told:
    what = rng.choice(("右彎", "左彎", "岔路", "注意號誌"))
    pen.regular(x, y + r * 0.2, r * 1.15, 3, -90, RED)
    pen.regular(x, y + r * 0.2, r * 0.82, 3, -90, WHITE)
    if what == "岔路":
        pen.line([(x, y - r * 0.2), (x, y + r * 0.5)], r * 0.13, BLACK)
        pen.line([(x - r * 0.3, y + r * 0.2), (x + r * 0.3, y + r * 0.2)], r * 0.13, BLACK)
    elif what == "注意號誌":
        for n, name in enumerate(("紅色", "黃色", "綠色")):
            pen.disc(x, y + r * (-0.12 + 0.27 * n), r * 0.115, COLOURS[name])
    else:
        side = 1 if what == "右彎" else -1
        pen.arrow(
            [(x - side * r * 0.18, y + r * 0.5), (x - side * r * 0.18, y + r * 0.25), (x + side * r * 0.12, y + r * 0.02)],
            r * 0.13, BLACK,
        )  # fmt: skip
    return f"警告：{what}" if what != "注意號誌" else "警告：前方有號誌", "warning", []


def _other(pen: Pen, rng: random.Random, x: float, y: float, r: float) -> Told:
    what = rng.choice(("停車再開", "讓路", "單行道"))
    if what == "停車再開":
        pen.regular(x, y, r, 8, 22.5, WHITE)
        pen.regular(x, y, r * 0.92, 8, 22.5, RED)
        pen.han(x, y, "停", r * 1.05, WHITE)
        return what, "stop", []
    if what == "讓路":
        pen.regular(x, y - r * 0.2, r * 1.15, 3, 90, RED)
        pen.regular(x, y - r * 0.2, r * 0.75, 3, 90, WHITE)
        return what, "yield", []
    side = rng.choice((-1, 1))
    pen.box(x - r * 1.05, y - r * 0.5, x + r * 1.05, y + r * 0.5, BLUE, round=5)
    pen.arrow([(x - side * r * 0.7, y), (x + side * r * 0.45, y)], r * 0.2, WHITE)
    return what, "one way", [("sign direction", "箭頭指向哪一邊？", "右邊。" if side > 0 else "左邊。")]
