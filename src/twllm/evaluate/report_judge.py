"""What a judged suite adds to the report: who judged, how the orders agreed, what could not be read, ratings by turn."""

from typing import Any


def judge_lines(block: dict[str, Any]) -> list[str]:
    """Lines for a block with `judge` in it; none for any other."""
    if "judge" not in block:
        return []
    judge = block["judge"]
    prompts = judge["prompts"]
    lines = [
        f"裁判 (judge)：{judge['model']}，溫度 {judge['temperature']}，提示 {prompts['name']} 第 {prompts['version']} 版"
        f"（{prompts['hash']}）。讀不出判定的回覆 (unreadable)：{_failures(block['failures'])}。"
    ]
    return [*lines, "", *(_pair_lines(block) if "agreement" in block else _turn_lines(block))]


def _failures(failures: dict[str, Any]) -> str:
    reasons = [f"{name} {count}" for name, count in failures.items() if name != "total"]
    return f"{failures['total']}" + (f"（{'、'.join(reasons)}）" if reasons else "")


def _pair_lines(block: dict[str, Any]) -> list[str]:
    names = {"win": "勝 win", "tie": "平 tie", "loss": "負 loss", "inconsistent": "兩序矛盾 inconsistent"}
    lines = [
        f"對手 (against)：{block.get('opponent', {}).get('name', '')}。問了 {block['asked']} 題，判得出來 {block['n']} 題。",
        "",
        "| | 題數 | 比例 | 95% 區間 |",
        "|---|---|---|---|",
    ]
    lines += [_share_row(name, block["shares"][key]) for key, name in names.items()]
    lines += [
        _share_row("兩序一致 agreement", block["agreement"]),
        _share_row("選排在前面的 first place", block["position"]["first"]),
        _share_row("選比較長的 longer", block["length"]["longer"]),
    ]
    return lines


def _share_row(name: str, share: dict[str, Any]) -> str:
    if share["share"] is None:
        return f"| {name} | 0/0 | — | — |"
    low, high = share["interval"]
    return f"| {name} | {share['count']}/{share['n']} | {share['share']:.1%} | {low:.3f}–{high:.3f} |"


def _turn_lines(block: dict[str, Any]) -> list[str]:
    """Ratings by category and turn."""
    numbers = list(block["turns"])
    head = " | ".join(f"第 {number} 輪" for number in numbers)
    lines = [f"| 類別 | 全部 | {head} | 評分數 n |", "|---" * (len(numbers) + 3) + "|"]
    for name, part in [("全部 all", block), *block["topics"].items()]:
        turns = " | ".join(_mean(part["turns"][number]) for number in numbers)
        lines.append(f"| {name} | {_mean(part)} | {turns} | {part['n']} |")
    return lines


def _mean(part: dict[str, Any]) -> str:
    if part["score"] is None:
        return "—"
    low, high = part["interval"]
    return f"{part['score']:.2f}（{low:.2f}–{high:.2f}）"
