"""The texts of evaluation suites, as passages to look for in training data: questions, contexts, choices and references.

A suite is a task or group by name, or a file of texts (corpus/passages.py). Of `texts` suites the text itself is looked for; a needle's
haystack is not, since it is made of training text on purpose.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from twllm.corpus.config import CorpusSource
from twllm.corpus.overlap import Passage
from twllm.corpus.passages import item_passages, read_passages
from twllm.errors import UserError
from twllm.evaluate.sources import TEXT_READERS, read_items, with_gold
from twllm.evaluate.task import Item, Task, find_tasks

Suites = dict[str, list[Passage]]


def is_file(suite: str) -> bool:
    """Whether a suite is named by what holds its texts."""
    return suite.startswith("twllm:") or Path(suite).exists()


def read_suites(
    suites: Iterable[str], data: Path | None = None, questions: str = "twllm:culture", text: Path | None = None
) -> tuple[Suites, dict[str, str]]:
    """Passages by suite, and the tasks of a group whose gold is not in `data`, with why.

    Raises:
        UserError: unknown suite, no data, or nothing in it.
    """
    found: Suites = {}
    names = list(suites)
    for name in filter(is_file, names):
        found[CorpusSource(path=name).label] = list(read_passages(name))
    tasks = [name for name in names if not is_file(name)]
    wanted, left_out = with_gold(find_tasks(tasks), tasks, data) if tasks else ([], {})
    for task in wanted:
        items = read_items(task, questions, text if task.reader in TEXT_READERS else data)
        found[task.label] = list(task_passages(task, items))
    if empty := [name for name, passages in found.items() if not passages]:
        raise UserError("裡面沒有題目 (no texts)", empty[0], "檢查檔案內容")
    return found, left_out


def task_passages(task: Task, items: Iterable[Item]) -> Iterator[Passage]:
    """The passages of a task's items, named `TASK/ID`."""
    for item in items:
        name = item_name(task.label, item.id)
        if task.reader == "texts":
            yield Passage(name, "text", item.prompt)
            continue
        context = "" if task.reader == "needle" else item.context
        for question in item.turns or (item.question,):
            yield from item_passages(name, question, context=context, choices=item.choices, references=item.references)


def item_name(suite: str, id: str) -> str:
    """What an item is called in reports."""
    return f"{suite}/{id}"
