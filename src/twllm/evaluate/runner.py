"""Run suites on a model; the result is one JSON, with the answers and a report beside it (published.py scores answers that exist).

Answers are stored as they come in `NAME.responses.jsonl`: run again after an interruption, only the missing ones are
asked. Prompts are asked in order of their text, where shared beginnings are computed once, or of length, where batches are padded;
rows come out in the benchmark's order, in the JSON and as a table in `NAME.items.parquet`.
The batch size changes no answer, save where float rounding decides between two equally likely tokens.
Not covered: a test of outputs for leaked training text (`contamination` looks at
the questions).
"""

import time
from pathlib import Path
from typing import Any

from twllm import artifact
from twllm.errors import UserError
from twllm.evaluate.clean_score import flag_blocks
from twllm.evaluate.kinds import Options, Session, check_options, find_kind
from twllm.evaluate.kinds.likelihood import by_likelihood
from twllm.evaluate.model import open_model
from twllm.evaluate.report import write_report
from twllm.evaluate.responses import ResponseFile
from twllm.evaluate.rows import write_items
from twllm.evaluate.sources import TEXT_READERS, read_items, with_gold
from twllm.evaluate.suite_overlap import suites_overlap
from twllm.evaluate.task import Item, Task, find_tasks

DEFAULT_QUESTIONS = "twllm:culture"


def evaluate_model(
    model: str,
    *,
    suites: list[str],
    questions: str | None = None,
    data: Path | None = None,
    out: Path,
    limit: int | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    protocol: str = "",
    **more: Any,
) -> dict[str, Any]:
    """Ask `model` (folder, hub name or URL) all items of the suites; write `out`, its report, pictures and responses.

    `questions` None: the shipped culture questions. `limit`: at most so many items per task, evenly spread over it.

    Raises:
        UserError: unknown suite, data missing or in another layout, no such model; all before the first answer.
    """
    for name, value in (("limit", limit), ("max-new-tokens", max_new_tokens), ("batch-size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} 要是 1 以上 (must be at least 1)", f"--{name} {value}", "改成正整數")
    if (precision := more.get("precision") or "auto") not in ("auto", "fp32", "bf16"):
        raise UserError("沒有這種精度 (unknown precision)", f"--precision {precision}", "auto、fp32 或 bf16")
    if out.is_dir():
        raise UserError("結果要寫成檔案，這裡是資料夾 (--out is a folder)", out, f"例如 --out {out / 'eval.json'}")
    options = Options(questions or DEFAULT_QUESTIONS, data, limit, max_new_tokens, batch_size, protocol, more)
    able, no_choices = by_likelihood(find_tasks(suites, protocol), more.get("by") or "")
    wanted, left_out = with_gold(able, suites, data)  # only what a group brought is left out
    left_out |= no_choices
    asked = _load(wanted, options.questions, data, limit, more.get("text"))
    kinds = {task.kind: find_kind(task.kind) for task in asked}
    for task, items in asked.items():
        check_options(task, items, options)
    overlap = suites_overlap(asked, more.get("contamination"))
    started = time.perf_counter()
    session = Session(
        open_model(model, max_new_tokens, precision, more.get("tokenizer")),
        ResponseFile(out.with_name(f"{out.stem}.responses.jsonl")),
        options,
    )
    blocks = {task.label: kinds[task.kind](task, items, session) for task, items in asked.items()}
    for block in blocks.values():
        block.setdefault("template_fingerprint", session.model.template_fingerprint)
    meta = {
        "model": model,
        "model_fingerprint": session.model.fingerprint,
        "template_fingerprint": session.model.template_fingerprint,
        "precision": getattr(session.model, "precision", ""),
        "max_new_tokens": max_new_tokens,
        "limit": limit,
        **({"skipped": left_out} if left_out else {}),
        "reused_answers": session.reused,
        "wall_s": round(time.perf_counter() - started, 2),
    }
    session.file.keep(session.kept)
    flag_blocks(blocks, meta, overlap)
    return _finish({"meta": meta, **blocks}, out)


def _load(
    wanted: list[Task], questions: str, data: Path | None, limit: int | None, text: Path | None = None
) -> dict[Task, list[Item]]:
    """The items of each task, thinned out to `limit`."""
    loaded = {}
    for task in wanted:
        items = read_items(task, questions, text if task.reader in TEXT_READERS else data)
        if limit is not None and limit < len(items):
            items = [items[i * len(items) // limit] for i in range(limit)]
        loaded[task] = items
    return loaded


def _finish(result: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write the result and its report."""
    result["meta"]["code_version"] = artifact.code_version()
    result["meta"]["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    artifact.write_json(out, result)
    write_items(result, out.with_suffix(".items.parquet"))
    write_report(result, out.parent, out.stem)
    return result
