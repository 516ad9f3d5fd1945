"""What the doctor says: one finding per cause, worst first, as a table or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["fault", "warning", "ok", "unknown"]
MARKS = {"fault": "[red]✗[/]", "warning": "[yellow]⚠[/]", "unknown": "[dim]？[/]", "ok": "[green]✓[/]"}
KINDS = {
    "weights": "權重 weights",
    "tokenizer": "分詞器 tokenizer",
    "template": "對話範本 template",
    "system": "系統提示 system text",
    "bos": "起始符 BOS",
    "end_token": "結束符 end token",
    "injection": "使用者打的控制符 typed control tokens",
    "sampling": "抽樣預設 sampling defaults",
    "temperature": "溫度 temperature",
    "precision": "精度與量化 precision",
    "context": "上下文長度 context",
    "max_tokens": "回答長度 answer length",
    "stop": "停止字串 stop strings",
    "stream": "串流 streaming",
    "spaces": "空白 white space",
    "licence": "授權 licence",
    "machine": "這台機器 this machine",
    "server": "伺服器 server",
}


@dataclass(frozen=True)
class Finding:
    """One check's result: what was looked at, what was seen, why answers differ for it, what to do about it."""

    kind: str  # a key of KINDS
    level: Level
    seen: str
    why: str = ""
    fix: str = ""


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Faults, warnings, what could not be found out, then what is in order; within a level in the order of KINDS."""
    levels, kinds = list(MARKS), list(KINDS)
    return sorted(findings, key=lambda finding: (levels.index(finding.level), kinds.index(finding.kind)))


def has_fault(findings: Sequence[Finding]) -> bool:
    """Whether anything is wrong."""
    return any(finding.level == "fault" for finding in findings)


def as_json(target: str, findings: Sequence[Finding]) -> str:
    """One object: target, healthy, findings (worst first)."""
    body: dict[str, Any] = {"target": target, "healthy": not has_fault(findings)}
    return json.dumps(body | {"findings": [asdict(f) for f in worst_first(findings)]}, ensure_ascii=False, indent=2)


def show(target: str, findings: Sequence[Finding]) -> None:
    """A table: the faults with their reasons and remedies, one line for each check in order."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "檢查 check", "看到什麼 seen", "為什麼要緊 why it matters → 怎麼辦 fix", title=escape(target))
    for finding in worst_first(findings):
        advice = finding.why + (f"\n→ {finding.fix}" if finding.fix else "")
        table.add_row(MARKS[finding.level], KINDS[finding.kind], escape(finding.seen), escape(advice))
    console = Console()
    console.print(table)
    faults = sum(finding.level == "fault" for finding in findings)
    told = f"[red]{faults} 個問題 (faults)[/]" if faults else "[green]沒有發現問題 (healthy)[/]"
    console.print(told, highlight=False)
