"""Two results on the same items, compared item by item: McNemar's test on the questions that only one of them got right.

Exact (binomial, two-sided) below EXACT such questions, else the chi-square form with continuity correction. Sources: McNemar,
Psychometrika 12 (1947); Edwards, Psychometrika 13 (1948). Comparing is refused where prompts, gold or items differ: a difference would
not be the models' then. Not covered: marks between 0 and 1 (ROUGE), judged suites, a correction for many suites.
"""

import json
import math
from pathlib import Path
from typing import Any

from twllm.errors import UserError, require_file

EXACT = 25  # discordant pairs; the usual rule


def mcnemar(only_first: int, only_second: int) -> tuple[float, str]:
    """(two-sided p, which form) from the numbers of items that one alone got right.

    >>> mcnemar(1, 5), mcnemar(0, 0)
    ((0.21875, 'exact binomial'), (1.0, 'exact binomial'))
    """
    n, least = only_first + only_second, min(only_first, only_second)
    if n < EXACT:
        tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
        return min(1.0, 2 * tail), "exact binomial"
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / n
    return math.erfc(math.sqrt(statistic / 2)), "chi-square with continuity correction"


def compare_results(first: Path, second: Path) -> dict[str, Any]:
    """For every suite that both results have: scores, n, discordant items, p; and which suites were left out, with the reason.

    Raises:
        UserError: not results of `twllm eval`, no suite in common, or a common suite whose prompts, gold or items differ.
    """
    a, b = _read(first), _read(second)
    common = [name for name in a if name in b]
    if not common:
        have = f"{'、'.join(a) or '無'} / {'、'.join(b) or '無'}"
        raise UserError("兩份結果沒有相同的題組 (no suite in common)", f"{first}、{second}", f"各有 (they have) {have}")
    left_out = {
        name: f"只在 {first if name in a else second} (in one only)" for name in [*a, *b] if (name in a) != (name in b)
    }
    suites = {}
    for name in common:
        if not all(_right_or_wrong(block) for block in (a[name], b[name])):
            left_out[name] = "得分不是對或錯 (marks are not right or wrong)"
            continue
        _check_same(name, a[name], b[name], f"{first}、{second}")
        suites[name] = _compare(a[name], b[name])
    return {"first": str(first), "second": str(second), "suites": suites, "left_out": left_out}


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The suites of a result."""
    try:
        result = json.loads(require_file(file, "找不到結果檔 (no such result)").read_text(encoding="utf-8"))
        return {name: block for name, block in result.items() if isinstance(block, dict) and block.get("items")}
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"不是 twllm eval 的結果 (not a result)：{error}", file, "指到 --out 寫出的 JSON") from error


def _right_or_wrong(block: dict[str, Any]) -> bool:
    """Whether every row is either right or wrong."""
    return all(isinstance(row.get("correct"), bool) and row.get("mark", 0) in (0, 1) for row in block["items"])


def _check_same(name: str, a: dict[str, Any], b: dict[str, Any], where: str) -> None:
    for key, what in (("prompt_hash", "題目的提示不同 (prompts differ)"), ("gold_hash", "正解不同 (gold differs)")):
        if not a.get(key) or a.get(key) != b.get(key):
            fix = f"{a.get(key)} / {b.get(key)}：用同一版題目、同樣的 --limit 與評法再測一次"
            raise UserError(f"{name} 的{what}", where, fix)
    for key in ("by", "asked"):
        if a.get(key, "") != b.get(key, ""):
            raise UserError(f"{name} 的問法不同 (asked in different ways)", where, f"{a.get(key)} / {b.get(key)}")
    if [row["id"] for row in a["items"]] != [row["id"] for row in b["items"]]:
        raise UserError(f"{name} 的題目不同 (items differ)", where, "用同一版題目再測一次")


def _compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    pairs = [(x["correct"], y["correct"]) for x, y in zip(a["items"], b["items"], strict=True)]
    first, second = pairs.count((True, False)), pairs.count((False, True))
    p, test = mcnemar(first, second)
    return {
        "n": len(pairs), "scores": [a["score"], b["score"]], "both": pairs.count((True, True)), "only_first": first,
        "only_second": second, "neither": pairs.count((False, False)), "p": p, "test": f"McNemar, {test}",
    }  # fmt: skip


def table(compared: dict[str, Any]) -> str:
    """For people: a Markdown table, and what was left out."""
    lines = [
        f"A：{compared['first']}", f"B：{compared['second']}", "",
        "| 題組 suite | 題數 n | A | B | 只有 A 對 | 只有 B 對 | p | 檢定 test |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in compared["suites"].items():
        a, b = row["scores"]
        lines.append(
            f"| {name} | {row['n']} | {a:.4f} | {b:.4f} | {row['only_first']} | {row['only_second']} | {row['p']:.4g} | {row['test']} |"
        )
    return "\n".join([*lines, *(f"略過 (left out) {name}：{why}" for name, why in compared["left_out"].items())])
