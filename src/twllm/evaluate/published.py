"""Answers that exist in, scores out, no model: published response files marked by a suite's rules.

`scores` has the names and metrics MediaTek's benchmark.md prints (`TMMLU/國際法`, `TMMLU_Avg`, `XSum_TC_5k`), `skipped` every task
that could not be scored and why; beside them stands each task's block, as after asking a model. A task without gold or
without any answer is skipped and named. What would change a score without a word is an error: one question unanswered, ids
of another edition, gold that cannot be read. Answers to questions that are not asked (TMMLU-2023-12 has fewer) are counted.
Not covered: tasks that need a judge or log-likelihoods.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from twllm import artifact
from twllm.errors import UserError, require_file
from twllm.evaluate.kinds.generate import block
from twllm.evaluate.report import write_report
from twllm.evaluate.responses import Answers, read_responses
from twllm.evaluate.sources import missing_gold, read_items
from twllm.evaluate.task import Item, Response, Task, find_tasks, tasks

DEFAULT_QUESTIONS = "twllm:culture"
SHOWN = 5  # ids named in an error


def score_responses(
    responses: Path, data: Path, out: Path | None = None, *,
    suites: Iterable[str] = ("tceval",), protocol: str = "mediatek", drcd: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score answers that exist (MediaTek's result file or ours) on every task of the suites that has both answers and gold.

    `data` is a folder in MediaTek's layout, `drcd` DRCD_test.json where it lies elsewhere. Writes `out` and its report.

    Raises:
        UserError: no such suite, file or folder; nothing to score; questions without an answer; broken gold or answers.
    """
    if out is not None and out.is_dir():
        fix = f"例如 --out {out / 'scores.json'}"
        raise UserError("結果要寫成檔案，這裡是資料夾 (--out is a folder)", out, fix)
    wanted = find_tasks(suites, protocol)
    name, answers = read_responses(responses, tasks().values())
    if "://" not in str(data) and not str(data).startswith("datasets:"):
        what = "找不到題目資料夾 (no such data folder)"
        if not require_file(data, what).is_dir():
            raise UserError(what, data, "--data 要是 MediaTek 排法的資料夾 (a folder, not a file)")
    result: dict[str, Any] = {
        "scores": {},
        "skipped": {},
        "meta": {"model": name, "protocol": protocol, "responses": artifact.hash_path(responses), "unused_answers": {}},
    }
    for task in wanted:
        file = drcd if task.reader == "drcd" else None
        given = _answers_of(task, answers)
        if why := _why_not(task, data, file, given):
            result["skipped"][shown_name(task)] = why
            continue
        items = read_items(task, DEFAULT_QUESTIONS, data, file)
        _check_all_answered(task, items, given, responses)
        result["skipped"] |= _topics_without_gold(task, items, given)
        if unused := len(given) - len(items):
            result["meta"]["unused_answers"][shown_name(task)] = unused
        result[task.label] = block(task, items, {item.id: given[item.id] for item in items})
        result["scores"] |= published_scores(task, result[task.label])
    if not result["scores"]:
        reasons = "；".join(f"{task}：{why}" for task, why in result["skipped"].items())
        raise UserError("沒有可以評分的題組 (nothing to score)", data, reasons)
    return _finish(result, out)


def shown_name(task: Task) -> str:
    """The task's name in MediaTek's files, ours where it has none there."""
    return task.published or task.label


def published_scores(task: Task, block: dict[str, Any]) -> dict[str, dict[str, float]]:
    """A block's scores under the names and metrics they are published with; topics of their own where they are averaged."""
    name = shown_name(task)
    if "scores" in block:
        return {name: {metric: block["scores"][metric] for metric in task.metrics}}
    (metric,) = task.metrics
    if task.reader != "tmmlu":
        return {name: {metric: block["score"]}}
    topics = {f"{name}/{topic}": {metric: row["score"]} for topic, row in block["topics"].items()}
    return topics | {f"{name}_Avg" if task.average == "topics" else name: {metric: block["score"]}}


def _answers_of(task: Task, answers: Answers) -> dict[str, Response]:
    """Answers to the task by item id: those given under its own protocol, else those under the task's plain name."""
    for name in dict.fromkeys((task.label, task.name)):
        if given := {id: row for (answered, id), row in answers.items() if answered == name}:
            return given
    return {}


def _why_not(task: Task, data: Path, file: Path | None, given: dict[str, Response]) -> str:
    """Why the task cannot be scored, '' when it can."""
    if task.kind != "generate":
        return f"不能只靠回答評分 (kind {task.kind} needs more than answers)"
    if file is None and (why := missing_gold(task, data)):
        return f"沒有正解 (gold missing)：{why}"
    return "" if given else "回答檔裡沒有這個題組 (no answers in the responses file)"


def _check_all_answered(task: Task, items: Sequence[Item], given: dict[str, Response], where: Path) -> None:
    missing = [item.id for item in items if item.id not in given]
    if not missing:
        return
    asked = {item.id for item in items}
    strange = [id for id in given if id not in asked]
    what = f"{shown_name(task)} 有 {len(missing)} 題沒有回答 (answers missing)：{_some(missing)}"
    if strange:
        what += f"；有 {len(strange)} 個題號不在題目裡 (ids that match no question)：{_some(strange)}"
    raise UserError(what, where, "題目與回答要是同一版，題號要相同；空的回答也要列出來")


def _some(ids: Sequence[str]) -> str:
    return "、".join(ids[:SHOWN]) + ("…" if len(ids) > SHOWN else "")


def _topics_without_gold(task: Task, items: Sequence[Item], given: dict[str, Response]) -> dict[str, str]:
    """TMMLU subjects that were answered and are not in this edition's gold."""
    if task.reader != "tmmlu":
        return {}
    known = {item.topic for item in items}
    topics = dict.fromkeys(id.rpartition("/")[0] for id in given)
    why = f"這一版的題目沒有這一科 (no gold for this subject among the {len(known)} here)"
    return {f"{shown_name(task)}/{topic}": why for topic in topics if topic not in known}


def _finish(result: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Write the result and its report, where a file was asked for."""
    meta = result["meta"]
    meta |= {"skipped": result["skipped"], "code_version": artifact.code_version()}
    meta["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if out is not None:
        artifact.write_json(out, result)
        write_report(result, out.parent, out.stem)
    return result
