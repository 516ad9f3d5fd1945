"""Tasks as lm-evaluation-harness YAML files, one folder for `lm-eval run --include_path` (0.4.13).

Every task that is asked and marked answer by answer becomes `GROUP_PROTOCOL_NAME` (`generate_until`, our prompt, our
scorer); one answered by a letter or a label also `…_mc`, the same prompt with the log-likelihood of each answer. A task asked
by likelihood anyway (TMMLU+) has that form alone. Groups are `GROUP_PROTOCOL` and `GROUP_PROTOCOL_mc`, without a mean over
tasks, which nobody publishes. A task averaged over topics is a group of one task a topic with their unweighted mean, or,
while no data folder is known, one task that computes that mean.
The YAML files hold names and settings alone: items are read by `functions` when lm-eval loads a task, so twllm must be
installed beside it. The folder is named by its content, so that two runs at a time do not meet.
Not covered: judged tasks, needle, bits per character; few-shot.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from twllm.artifact import fingerprint, write_folder, write_manifest
from twllm.errors import UserError
from twllm.evaluate.score import group_of
from twllm.evaluate.scorers import SCORERS
from twllm.evaluate.sources import DATASETS, read_items
from twllm.evaluate.task import Task, tasks

DATA = "TWLLM_EVAL_DATA"  # environment variable: the data folder where the export has none
FUNCTIONS = "twllm.evaluate.lmeval.functions"
DEFAULT_QUESTIONS = "twllm:culture"
MAX_NEW_TOKENS = 64  # as `twllm eval`; lm-eval's --gen_kwargs max_gen_toks=… changes it


class Function(str):
    """A name that YAML writes as `!function name`."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", name))


def cache_folder() -> Path:
    """Where exports go that were given no folder: $XDG_CACHE_HOME/twllm/lm-eval."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twllm" / "lm-eval"


def export(data: str | None = None, out: Path | None = None) -> tuple[Path, dict[str, str]]:
    """Write all tasks; the folder, and the tasks left out with the reason. `data` None: what $TWLLM_EVAL_DATA says, if anything.

    With a data folder only tasks whose gold is in it are written; without one all are, and the gold is looked for when lm-eval
    loads them.

    Raises:
        UserError: the data folder does not exist, or the output folder is somebody else's.
    """
    data = data or os.environ.get(DATA) or ""
    if data and not DATASETS.match(data):
        folder = Path(data).expanduser().resolve()
        if not folder.is_dir():
            raise UserError("找不到題目資料夾 (no such data folder)", folder, f"檢查 --data 或環境變數 {DATA}")
        data = str(folder)
    configs, left_out = _configs(data)
    files = {f"{name}.yaml": dump(config) for name, config in configs.items()}
    target = out or cache_folder() / fingerprint(files)
    if out is None and (target / "manifest.json").is_file():
        return target, left_out
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_folder(target) as folder:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        write_manifest(folder, "lmeval", {"data": data}, {}, counts={"files": len(files)}, left_out=left_out)
    return target, left_out


def dump(config: dict[str, Any]) -> str:
    """YAML in which texts stay readable and functions are lm-eval's."""
    return yaml.dump(config, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=1000)


def exported() -> list[Task]:
    """The tasks that lm-eval can run: answers marked one by one by a scorer, or chosen by likelihood."""
    return [task for task in tasks().values() if task.kind in ("generate", "likelihood") and task.scorer in SCORERS]


def has_choices(task: Task) -> bool:
    """Whether items are answered by a letter or a label: these also have a log-likelihood form."""
    return bool(task.labels) or "choice" in task.scorer or task.scorer == "first_character"


def forms(task: Task) -> dict[str, bool]:
    """Endings of the task's names, and whether the task of that name compares likelihoods."""
    if task.kind == "likelihood":
        return {"": True}
    return {"": False, "_mc": True} if has_choices(task) else {"": False}


def group_name(task: Task) -> str:
    """`tceval_mediatek`; `twllm` for a task of no group."""
    return "_".join(part for part in (task.group or "twllm", task.protocol) if part)


def _configs(data: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Configurations by name, groups last; and the tasks left out."""
    configs: dict[str, dict[str, Any]] = {}
    groups: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    for task in exported():
        try:
            topics = _topics(task, data)
        except UserError as error:
            left_out[task.label] = f"{error.what}；{error.fix}"
            continue
        for ending, scored in forms(task).items():
            name = f"{group_name(task)}_{task.name}{ending}"
            configs.update(_of_task(task, name, data, topics, scored))
            if task.group:
                groups.setdefault(group_name(task) + ending, []).append(name)
    return {**configs, **{name: {"group": name, "task": members} for name, members in groups.items()}}, left_out


def _topics(task: Task, data: str) -> list[str]:
    """The topics that a task is averaged over, in the benchmark's order; [] where it is not, or while there is no data.

    Raises:
        UserError: the data folder has not the task's gold.
    """
    if not data and task.reader != "questions":
        return []
    items = read_items(task, DEFAULT_QUESTIONS, Path(data) if data else None)
    return list(dict.fromkeys(group_of(item.topic) for item in items)) if task.average == "topics" else []


def _of_task(
    task: Task, name: str, data: str, topics: Iterable[str], scored: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One task; or one for each topic, and the group over them."""
    names = {f"{name}_{topic}": topic for topic in topics}
    for own, topic in (names or {name: ""}).items():
        yield own, _config(task, own, data, topic, scored)
    if names:
        metrics = _metrics(task, scored)
        means = [{"metric": metric, "aggregation": "mean", "weight_by_size": False} for metric in metrics]
        yield name, {"group": name, "group_alias": task.title, "task": list(names), "aggregate_metric_list": means}


def _metrics(task: Task, scored: bool) -> tuple[str, ...]:
    return ("acc", "acc_norm") if scored else task.metrics


def _config(task: Task, name: str, data: str, topic: str, scored: bool) -> dict[str, Any]:
    """lm-eval's configuration of one task. Columns of a document are those that `functions.load` gives it."""
    over_topics = task.average == "topics" and not topic
    mean: Any = Function(f"{FUNCTIONS}.mean_of_topics") if over_topics else "mean"
    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": Function(f"{FUNCTIONS}.load"),
        "test_split": "test",
        "doc_to_text": "prompt",
        "target_delimiter": str(task.options.get("delimiter", "")),
    }
    if task.answer_prefix:  # a template writes the space before an answer itself; likelihoods are asked in plain text
        config["gen_prefix"] = task.answer_prefix if scored else task.answer_prefix.lstrip()
    if scored:
        config |= {"output_type": "multiple_choice", "doc_to_choice": "answers", "doc_to_target": "gold"}
    else:
        limit = int(task.options.get("max_new_tokens", MAX_NEW_TOKENS))
        greedy = {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": limit}
        config |= {"output_type": "generate_until", "doc_to_target": "target", "generation_kwargs": greedy}
    marks = [{"metric": metric, "aggregation": mean, "higher_is_better": True} for metric in _metrics(task, scored)]
    return {
        **config,
        "process_results": Function(f"{FUNCTIONS}.{'mark_choice' if scored else 'mark_answer'}"),
        "metric_list": marks,
        "metadata": {
            "version": task.version, "twllm_task": task.label, "twllm_data": data, "twllm_topic": topic,
            "twllm_scored": scored, "source": task.source,
        },
    }  # fmt: skip
