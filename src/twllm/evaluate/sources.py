"""Where items come from: keyword questions, a folder in MediaTek's TC-Eval layout, or a data set of `datasets` by name.

The layout is that of github.com/mtkresearch/MR-Models, TC-Eval/data: `TTQA/TTQA_mc.json`, `PenguinsInTable_TC/data.json`,
`TMMLU/subjects/SUBJECT/data.csv`, `DRCD_Test/…` (DRCD_test.json as its authors publish it will do, also in a `drcd` folder beside),
`FGC_Test/…` (both as given out and preprocessed), `XSum_TC_5k/test_sub5000.csv`, `IMDB_TC/test.csv`. Item ids are those of the
published answers: TTQA and Penguins carry their own, the others count rows from 0. FGC, XSum-TC and IMDB-TC gold was not at
hand when this was written: their columns are those MediaTek's code reads, tried on small files of that shape.

`datasets://OWNER/NAME` is read with `datasets.load_dataset(NAME, task's config, split="test")`. Columns as in
MediaTek-Research/TCEval-v2 (`paragraph`, `question`, `references`; `A` … `E` or `choices`, `answer`; `subject`), XSum and IMDB
as in yentinglin/TC-Eval (`document`, `summary`; `text`, `label`). The hub
could not be reached when this was written: the column names come from its dataset card, only local data was tried.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from twllm.errors import UserError, did_you_mean, require_file
from twllm.evaluate.haystack import needle_items
from twllm.evaluate.keywords import read_questions
from twllm.evaluate.task import LETTERS, Item, Task, make_item
from twllm.evaluate.texts import text_items
from twllm.evaluate.tmmluplus import read_tmmluplus
from twllm.evaluate.turns import read_turns

TMMLU_EDITIONS = {(53, 3343): "tmmlu-53", (50, 3313): "tmmlu-50"}  # (subjects, questions)
DATASETS = re.compile(r"^datasets:/*(?P<name>.+)$")


def read_items(task: Task, questions: str | Path, data: Path | None, file: Path | None = None) -> list[Item]:
    """All items of a task, in the benchmark's order; `file` is the gold itself, where it lies elsewhere.

    Raises:
        UserError: no data given, not there, in another layout, or a broken row.
    """
    if task.reader == "questions":
        return [
            make_item(
                task, q.id, q.question, q.accept, rejected=q.reject, topic=q.topic, choices=q.choices, form=q.form
            )
            for q in read_questions(questions)
        ]
    if task.reader in TEXT_READERS:
        return TEXT_READERS[task.reader](task, data)
    if file is not None:
        what = f"找不到 {task.name} 的題目 (no such gold file)"
        if require_file(file, what).is_dir():
            raise UserError(what, file, "要指到檔案，這裡是資料夾 (a folder, not a file)")
        return list(_checked(task, file))
    if data is None:
        fix = f"加上 --data 資料夾（裡面有 {task.files[0]}）或 --data datasets://名稱"
        raise UserError(f"{task.name} 要有題目資料 (--data missing)", "--data", fix)
    if named := DATASETS.match(str(data)):
        return list(_from_datasets(task, named["name"]))
    files = find_files(task, data)
    items = [item for file in files for item in _checked(task, file)]
    if not items:
        raise UserError(f"{task.name} 沒有題目 (no items)", files[0], "檢查檔案內容")
    return items


def find_files(task: Task, data: Path) -> list[Path]:
    """The task's files in a TC-Eval data folder.

    Raises:
        UserError: the folder is missing or has another layout; says what was expected and what is there.
    """
    if not data.is_dir():
        raise UserError("找不到題目資料夾 (no such data folder)", data, "用 --data 指到 TC-Eval 的 data 資料夾")
    for pattern in task.files:
        climb = len(Path(pattern).parts) - len([part for part in Path(pattern).parts if part != ".."])
        base = data.resolve().parents[climb - 1] if climb else data
        if found := sorted(base.glob("/".join(Path(pattern).parts[climb:]))):
            return found
    there = "、".join(sorted(p.name for p in data.iterdir())[:12]) or "（空的）"
    expected = "、".join(task.files[:2])
    fix = f"裡面應該有 (expected) {expected}；現在有 (found) {there}"
    raise UserError(f"資料夾裡沒有 {task.name} 的題目 (not in MediaTek's layout)", data, fix)


def with_gold(wanted: Iterable[Task], suites: Iterable[str], data: Path | None) -> tuple[list[Task], dict[str, str]]:
    """The tasks whose gold is in the folder, and why the others were left out.

    Only what a group brought along is ever left out (FGC's gold is given out on registration); a task that was named
    stays, and so does everything where no data or nothing of the group is there: reading it then says what is missing.
    """
    wanted, named, left_out = list(wanted), {suite.strip() for suite in suites}, {}
    if data is None:
        return wanted, {}
    for task in wanted:
        if task.label not in named and (why := missing_gold(task, data)):
            left_out[task.label] = why
    kept = [task for task in wanted if task.label not in left_out]
    return (kept, left_out) if any(task.files for task in kept) else (wanted, {})


def missing_gold(task: Task, data: Path) -> str:
    """Why the task's gold is not to be had in the folder or data set; '' when it is, or when the task needs none."""
    hub = DATASETS.match(str(data))
    try:
        if hub and task.files and task.config not in _configs(hub["name"]):
            return f"{hub['name']} 沒有 {task.config} (no such config)"
        if task.files and not hub:
            find_files(task, data)
    except UserError as error:
        return f"{error.what}；{error.fix}"
    return ""


def edition_of(task: Task, items: Iterable[Item]) -> str:
    """Which edition of the benchmark the data are: `tmmlu-53` (as published), `tmmlu-50` (December 2023); '' : it has one.

    MediaTek took out three subjects and the ends of two others; anything else (a part of it, a limit) is told by its counts.
    """
    if task.reader != "tmmlu":
        return ""
    topics = Counter(item.topic for item in items)
    counts = (len(topics), sum(topics.values()))
    return TMMLU_EDITIONS.get(counts, f"tmmlu ({counts[0]} subjects, {counts[1]} questions)")


def _checked(task: Task, file: Path) -> Iterator[Item]:
    """The file's items; whatever is wrong inside becomes a UserError that names the file."""
    try:
        yield from READERS[task.reader](task, file)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, csv.Error) as error:
        what = f"{task.name} 的題目格式不對 (unexpected format)：{type(error).__name__}: {error}"
        raise UserError(what, file, "重新取得 MediaTek TC-Eval 的檔案") from error


def _read_drcd(task: Task, file: Path) -> Iterator[Item]:
    """DRCD as published (SQuAD-like), or as MediaTek's preprocess.py leaves it ({"0": {paragraph, question, references}})."""
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = content.items() if "data" not in content else enumerate(_squad_rows(content["data"]))
    for id, row in rows:
        yield make_item(task, str(id), row["question"], row["references"], context=row["paragraph"])


def _squad_rows(articles: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                references = [answer["text"] for answer in qa["answers"]]
                yield {"paragraph": paragraph["context"], "question": qa["question"], "references": references}


def _read_fgc(task: Task, file: Path) -> Iterator[Item]:
    """FGC as given out ([{DTEXT, QUESTIONS: [{QTEXT, ANSWER}]}]), or as MediaTek's preprocess.py leaves it."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        yield from _read_drcd(task, file)
        return
    asked = [(text["DTEXT"], question) for text in content for question in text["QUESTIONS"]]
    for number, (paragraph, question) in enumerate(asked):
        if not isinstance(question["ANSWER"], str):
            raise ValueError(f"question {number}: ANSWER is no text")
        yield make_item(task, str(number), question["QTEXT"], [question["ANSWER"]], context=paragraph)


def _read_xsum(task: Task, file: Path) -> Iterator[Item]:
    """XSum-TC: columns document and summary."""
    for number, row in enumerate(_csv_rows(file)):
        yield make_item(task, str(number), "", [row["summary"]], context=row["document"])


def _read_imdb(task: Task, file: Path) -> Iterator[Item]:
    """IMDB-TC: columns text and label (0 negative, 1 positive)."""
    for number, row in enumerate(_csv_rows(file)):
        yield _imdb_item(task, str(number), row["text"], row["label"])


def _imdb_item(task: Task, id: str, text: str, label: str | int) -> Item:
    if str(label) not in ("0", "1"):
        raise ValueError(f"row {id}: label {label!r} is not 0 or 1")
    return make_item(task, id, "", [task.labels[int(label)]], context=text)


def _csv_rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        yield from csv.DictReader(stream)


def _read_choices(task: Task, file: Path) -> Iterator[Item]:
    """TTQA and Penguins: {id: {question, choices, answer: index}}."""
    for id, row in json.loads(file.read_text(encoding="utf-8")).items():
        yield _choice_item(task, str(id), row)


def _choice_item(task: Task, id: str, row: dict[str, Any]) -> Item:
    choices = row.get("choices") or [row[letter] for letter in LETTERS if row.get(letter)]
    answer = row["answer"]
    letter = answer if answer in list(LETTERS) else LETTERS[int(answer)]
    topic = str(row.get("category") or "").strip()
    return make_item(task, id, row["question"], [letter], choices=choices, topic=topic)


def _read_tmmlu(task: Task, file: Path) -> Iterator[Item]:
    """One subject: columns content.Q (the choices stand in the question) and content.A (a letter)."""
    subject = file.parent.name
    for number, row in enumerate(_csv_rows(file)):
        yield _tmmlu_item(task, subject, number, row["content.Q"], row["content.A"])


def _tmmlu_item(task: Task, subject: str, number: int, question: str, answer: str) -> Item:
    if answer not in list(LETTERS):
        raise ValueError(f"row {number}: answer {answer!r} is not one of {LETTERS}")
    return make_item(task, f"{subject}/{number}", question, [answer], topic=subject)


TEXT_READERS: dict[str, Callable[[Task, Path | None], list[Item]]] = {  # of running text: --text, or what ships
    "texts": text_items,
    "needle": needle_items,
}
READERS: dict[str, Callable[[Task, Path], Iterator[Item]]] = {
    "drcd": _read_drcd,
    "fgc": _read_fgc,
    "xsum": _read_xsum,
    "imdb": _read_imdb,
    "choices": _read_choices,
    "turns": read_turns,
    "tmmlu": _read_tmmlu,
    "tmmluplus": read_tmmluplus,
}


def _configs(name: str) -> list[str]:
    """The configurations of a data set.

    Raises:
        UserError: `datasets` is not installed, or there is no such data set.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("沒有安裝 datasets (not installed)", name, "pip install 'twllm[data]'") from error
    try:
        return list(datasets.get_dataset_config_names(name))
    except (OSError, ValueError) as error:  # not found, no network
        what = f"讀不到資料集 (cannot load data set)：{error}"
        raise UserError(what, name, "檢查名稱與網路，或改用本機資料夾") from error


def _from_datasets(task: Task, name: str) -> Iterator[Item]:
    """Items of a data set on the Hugging Face hub or in a local `datasets` folder."""
    configs = _configs(name)
    if task.config not in configs:
        raise UserError(f"{name} 裡沒有 {task.name} (no such config)", task.config, did_you_mean(task.config, configs))
    import datasets

    try:
        rows = datasets.load_dataset(name, task.config, split="test")
    except (OSError, ValueError) as error:  # no network, no such split
        raise UserError(
            f"讀不到資料集 (cannot load data set)：{error}", name, "檢查名稱與網路，或改用本機資料夾"
        ) from error
    counts: dict[str, int] = {}
    for number, row in enumerate(rows):
        subject = str(row.get("subject") or "")
        counts[subject] = counts.get(subject, -1) + 1
        try:
            yield _dataset_item(task, row, str(row.get("id", number)), subject, counts[subject])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            fix = f"有的欄位 (columns)：{'、'.join(map(str, row))}"
            what = f"{task.name} 的欄位不對 (unexpected columns)：{type(error).__name__}: {error}"
            raise UserError(what, f"{name} 第 {number} 列", fix) from error


def _dataset_item(task: Task, row: dict[str, Any], id: str, subject: str, number: int) -> Item:
    if task.reader == "xsum":
        return make_item(task, id, "", [row["summary"]], context=row["document"])
    if task.reader == "imdb":
        return _imdb_item(task, id, row["text"], row["label"])
    if task.reader in ("drcd", "fgc"):
        return make_item(task, id, row["question"], row["references"], context=row["paragraph"])
    if task.reader == "tmmlu":
        return _tmmlu_item(task, subject, number, row["question"], row["answer"])
    return _choice_item(task, id, row)
