"""Run suites on a model, or score answers that exist; the result is one JSON, with the answers and a report beside it.

Answers are stored batch by batch in `NAME.responses.jsonl`: run again after an interruption, only the missing ones are
generated. Prompts are asked in order of length, so that batches are even; rows come out in the benchmark's order.
The batch size changes no answer, save where float rounding decides between two equally likely tokens.
Not covered yet: log-likelihood of choices, judges, a test of outputs for leaked training text (`contamination` looks at
the questions).
"""

import time
from pathlib import Path
from typing import Any

from twllm import artifact
from twllm.errors import UserError
from twllm.evaluate.kinds import Options, Session, find_kind
from twllm.evaluate.kinds.generate import block
from twllm.evaluate.model import open_model
from twllm.evaluate.report import write_report
from twllm.evaluate.responses import ResponseFile, read_responses
from twllm.evaluate.sources import read_items
from twllm.evaluate.task import Item, Task, find_tasks, tasks

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
    if out.is_dir():
        raise UserError("結果要寫成檔案，這裡是資料夾 (--out is a folder)", out, f"例如 --out {out / 'eval.json'}")
    options = Options(questions or DEFAULT_QUESTIONS, data, limit, max_new_tokens, batch_size, protocol, more)
    asked = _load(find_tasks(suites, protocol), options.questions, data, limit)
    kinds = {task.kind: find_kind(task.kind) for task in asked}
    started = time.perf_counter()
    session = Session(
        open_model(model, max_new_tokens), ResponseFile(out.with_name(f"{out.stem}.responses.jsonl")), options
    )
    blocks = {task.label: kinds[task.kind](task, items, session) for task, items in asked.items()}
    meta = {
        "model": model,
        "model_fingerprint": session.model.fingerprint,
        "template_fingerprint": session.model.template_fingerprint,
        "max_new_tokens": max_new_tokens,
        "limit": limit,
        "reused_answers": session.reused,
        "wall_s": round(time.perf_counter() - started, 2),
    }
    session.file.keep(session.kept)
    return _finish({"meta": meta, **blocks}, out)


def score_responses(responses: Path, data: Path, out: Path | None = None) -> dict[str, Any]:
    """Score answers that exist (MediaTek's result file or ours) on every TC-Eval task that has both answers and data.

    Raises:
        UserError: no common task, or answers to some items of a task are missing.
    """
    name, answers = read_responses(responses, tasks().values())
    answered = {task for task, _ in answers}
    wanted = [task for task in find_tasks(["tceval"]) if task.name in answered]
    result: dict[str, Any] = {"meta": {"model": name, "responses": artifact.hash_path(responses), "skipped": {}}}
    for task in wanted:
        try:
            items = read_items(task, DEFAULT_QUESTIONS, data)
        except UserError as error:
            result["meta"]["skipped"][task.name] = f"{error.what}；{error.fix}"
            continue
        missing = [item.id for item in items if (task.name, item.id) not in answers]
        if missing:
            what = f"{task.name} 有 {len(missing)} 題沒有回答 (answers missing)，例如 {missing[0]}"
            raise UserError(what, responses, "題目與回答要是同一版")
        result[task.name] = block(task, items, {item.id: answers[(task.name, item.id)] for item in items})
    if len(result) == 1:
        reasons = "；".join(dict.fromkeys(result["meta"]["skipped"].values())) or "回答檔裡沒有 TC-Eval 的題組"
        raise UserError("沒有可以評分的題組 (nothing to score)", data, reasons)
    return result if out is None else _finish(result, out)


def _load(wanted: list[Task], questions: str, data: Path | None, limit: int | None) -> dict[Task, list[Item]]:
    """The items of each task, thinned out to `limit`."""
    loaded = {}
    for task in wanted:
        items = read_items(task, questions, data)
        if limit is not None and limit < len(items):
            items = [items[i * len(items) // limit] for i in range(limit)]
        loaded[task] = items
    return loaded


def _finish(result: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write the result and its report."""
    result["meta"]["code_version"] = artifact.code_version()
    result["meta"]["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    artifact.write_json(out, result)
    write_report(result, out.parent, out.stem)
    return result
