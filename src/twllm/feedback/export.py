"""Opinions → a frozen snapshot for training: jsonl rows, what was left out and why, a manifest.

Formats: `ratings` (messages and rating, as `twllm:taiwan_feedback`; what methods sft-positive and kto read),
`sft-positive` (the same, only answers rated up: the paper's way), `kto` (prompt, completion, label) and `dpo` (prompt,
chosen, rejected: from thumbs on answers to one prompt, and from arena votes). kto and dpo rows are TRL's conversational form.
Only what its author agreed to have used, unless told otherwise. No row says who gave it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twllm.artifact import fingerprint, write_folder, write_manifest, write_text
from twllm.errors import UserError, did_you_mean
from twllm.feedback.gather import Gathered, Opinion, gather
from twllm.feedback.guards import Limits
from twllm.feedback.store import RatingStore
from twllm.tokens.preferences import Answer, pair_up

LICENSE = "user-feedback"  # no public licence: people agreed to training use, not to publication
ROWS = "rows.jsonl"
Row = dict[str, Any]
REASONS = {
    "no_consent": "沒有同意用於訓練 (no consent)",
    "too_short": "回答太短 (answer too short)",
    "no_prompt": "沒有問題 (no prompt)",
    "burst": "一分鐘內太多次 (burst)",
    "too_fast": "快到不可能讀完 (too fast)",
    "all_same": "每次都按一樣的 (all the same)",
    "over_cap": "超過每人上限 (over the cap per person)",
    "duplicate": "同一人重複評同一個回答 (same person, same answer)",
    "merged": "多人評同一個回答，合併成一筆 (several people, one row)",
    "disagree": "正反意見一樣多 (as many for as against)",
    "identity": "擂台中問到或說出模型名稱 (names were heard)",
    "tie": "擂台平手 (tie)",
    "same_answer": "兩邊回答相同 (same answer twice)",
}


def export_feedback(
    db: str | Path, out: Path, format: str = "ratings", *, consent_only: bool = True, limits: Limits | None = None
) -> dict[str, Any]:
    """Write the snapshot to `out`: a .jsonl file, or a folder with rows, report and manifest. Returns the report.

    Raises:
        UserError: unknown format, no database or one that cannot be read, or `out` cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"沒有這種匯出格式 (no such format): {format}", "--format", did_you_mean(format, FORMATS))
    limits = limits or Limits()
    with RatingStore(db, create=False) as store:
        found = gather(store, consent_only, limits)
    rows = list(FORMATS[format](found))
    report = {
        "format": format, "rows": len(rows), "opinions": found.found, **_counts(rows),
        "left_out": dict(found.left_out.most_common()), "scrubbed": dict(found.scrubbed.most_common()),
    }  # fmt: skip
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if out.suffix == ".jsonl":
        write_text(out, text)
        return report
    config = {"format": format, "consent_only": consent_only, "limits": asdict(limits)}
    with write_folder(out) as folder:
        write_text(folder / ROWS, text)
        write_text(folder / "report.md", markdown(report))
        write_manifest(folder, "feedback-export", config, {"rows": fingerprint(rows)}, metrics=report)
    return report


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"# 回饋匯出 (feedback export): {report['format']}", ""]
    lines += [f"評分與投票 {report['opinions']} 筆，匯出 {report['rows']} 列 (opinions, rows)。", ""]
    lines += ["| 沒有匯出的原因 (left out) | 筆數 |", "|---|---:|"]
    lines += [f"| {REASONS.get(reason, reason)} | {count} |" for reason, count in report["left_out"].items()]
    lines += ["", "| 遮去的個資 (scrubbed) | 處 |", "|---|---:|"]
    lines += [f"| {kind} | {count} |" for kind, count in report["scrubbed"].items()]
    return "\n".join(lines) + "\n"


def _counts(rows: list[Row]) -> dict[str, int]:
    wanted = [
        row["rating"] > 0 if "rating" in row else row["label"] for row in rows if "rating" in row or "label" in row
    ]
    return {"up": sum(wanted), "down": len(wanted) - sum(wanted)} if wanted else {}


def _about(opinion: Opinion) -> Row:
    return {
        "comment": "\n".join(opinion.comments),
        "reasons": list(opinion.reasons),
        "votes": {"up": opinion.up, "down": opinion.down},
        "model": opinion.model,
        "template": opinion.template,
        "time": opinion.time,
        "license": LICENSE,
        "consent": opinion.consent,
    }


def _ratings(found: Gathered) -> Iterator[Row]:
    for opinion in found.rated:
        messages = [*opinion.prompt, *opinion.completion]
        yield {"id": opinion.id, "messages": messages, "rating": _label(opinion), **_about(opinion)}


def _positive(found: Gathered) -> Iterator[Row]:
    return (row for row in _ratings(found) if row["rating"] > 0)


def _kto(found: Gathered) -> Iterator[Row]:
    for opinion in found.rated:
        shared = {"prompt": opinion.prompt, "completion": opinion.completion, "label": _label(opinion) > 0}
        yield {"id": opinion.id, **shared, **_about(opinion)}


def _dpo(found: Gathered) -> Iterator[Row]:
    by_id = {opinion.id: opinion for opinion in found.rated}
    answers = [Answer(o.id, tuple(o.prompt), tuple(o.completion), _label(o)) for o in found.rated]
    for pair in pair_up(answers):
        wanted = by_id[pair.id.split(">")[0]]
        both = {"prompt": list(pair.prompt), "chosen": list(pair.chosen), "rejected": list(pair.rejected)}
        yield {"id": pair.id, **both, "source": "thumbs", **_about(wanted)}
    for opinion in found.preferred:
        both = {"prompt": opinion.prompt, "chosen": opinion.completion, "rejected": opinion.other}
        yield {"id": opinion.id, **both, "source": "arena", **_about(opinion)}


def _label(opinion: Opinion) -> int:
    return 1 if opinion.up > opinion.down else -1


FORMATS: dict[str, Callable[[Gathered], Iterator[Row]]] = {
    "ratings": _ratings,
    "sft-positive": _positive,
    "kto": _kto,
    "dpo": _dpo,
}
