"""The logs of a phase that hold one JSON object with a `step` on each line: metrics.jsonl, alarms.jsonl, samples.jsonl."""

import json
from pathlib import Path
from typing import Any

from twllm.artifact import write_text


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Its rows, none if there is no such file; a last line cut by a crash is left out."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def cut_rows(file: Path, step: int) -> list[dict[str, Any]]:
    """Leave out the lines of steps after `step`, which were lost; returns the others."""
    kept = [row for row in read_rows(file) if row["step"] <= step]
    if file.exists():
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    return kept
