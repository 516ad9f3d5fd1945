"""The blocks of judged suites: the judge is asked about answers that exist, its replies are read, counted and kept."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from twllm.artifact import fingerprint
from twllm.corpus.check import leak_rate
from twllm.errors import UserError
from twllm.evaluate.judge import Judge, Messages, Reply, read_rating, read_verdict
from twllm.evaluate.score import gold_hash
from twllm.evaluate.task import Item, Task
from twllm.evaluate.turns import Turns, needs_reference
from twllm.evaluate.verdicts import mean_rating, order_report, outcome_of, pair_score

Row = dict[str, Any]


def pair_block(task: Task, items: Sequence[Item], ours: Turns, theirs: Turns, judge: Judge) -> dict[str, Any]:
    """The block of a comparison: each question judged twice, our answer as A and then as B.

    Raises:
        UserError: not a single question has two verdicts that can be read; or the judge cannot be asked.
    """
    answers = [(item, mine, other) for item, (mine,), (other,) in zip(items, ours, theirs, strict=True)]
    replies = judge.ask(
        [
            _pair_request(task, item, *pair, judge)
            for item, mine, other in answers
            for pair in ((mine, other), (other, mine))
        ]
    )
    rows = [_pair_row(*each, both) for each, both in zip(answers, _chunks(replies, 2), strict=True)]
    scores = pair_score(row["outcome"] for row in rows)
    failures = _failures(scores["n"], (problem for row in rows for problem in row["problems"]), judge)
    topics = {
        topic: pair_score(row["outcome"] for row in rows if row["topic"] == topic)
        for topic in dict.fromkeys(item.topic for item in items)
    }
    return {
        **scores,
        "average": "mean of questions with two verdicts: win 1, tie or inconsistent ½ (Wilson)",
        "asked": len(rows),
        **order_report([row["verdicts"] for row in rows], [(len(row["answer"]), len(row["other"])) for row in rows]),
        "failures": failures,
        **_common(task, items, judge, topics),
        "leak_rate": _leak_rate(ours),
        "leak_rate_other": _leak_rate(theirs),
        "items": rows,
    }


def _pair_row(item: Item, mine: str, other: str, both: Sequence[Reply]) -> Row:
    """One question: `verdicts`, `problems`, `judge` and `refused` have an entry for each order, ours as A first."""
    read = [("", "refused") if reply.refused else read_verdict(reply.text) for reply in both]
    outcome = outcome_of([verdict for verdict, _ in read])
    return {
        "id": item.id, "question": item.question, "topic": item.topic, "answer": mine, "other": other,
        "outcome": outcome, "expected": list(item.references),
        "verdicts": [verdict for verdict, _ in read], "problems": [problem for _, problem in read],
        "judge": [reply.text for reply in both], "refused": [reply.refused for reply in both],
    }  # fmt: skip


def single_block(task: Task, items: Sequence[Item], answers: Turns, judge: Judge) -> dict[str, Any]:
    """The block of a rating: each turn of each question rated 1 to 10.

    Raises:
        UserError: not a single rating can be read; or the judge cannot be asked.
    """
    num_turns = int(task.options["turns"])
    replies = judge.ask(
        [
            _single_request(task, item, turns[: number + 1], judge)
            for item, turns in zip(items, answers, strict=True)
            for number in range(num_turns)
        ]
    )
    each_reply = iter(replies)
    rows = [
        _single_row(item, number, turns[number], next(each_reply))
        for item, turns in zip(items, answers, strict=True)
        for number in range(num_turns)
    ]
    ratings = [[row["rating"] for row in each] for each in _chunks(rows, num_turns)]
    failures = _failures(mean_rating(ratings)["n"], (row["problem"] for row in rows), judge)
    topics = {
        topic: _by_turn([row for item, row in zip(items, ratings, strict=True) if item.topic == topic])
        for topic in dict.fromkeys(item.topic for item in items)
    }
    return {
        **_by_turn(ratings),
        "scale": [1, 10],
        "average": f"mean of ratings (bootstrap over {len(items)} questions)",
        "asked": len(rows),
        "questions": len(items),
        "failures": failures,
        **_common(task, items, judge, topics),
        "leak_rate": _leak_rate(answers),
        "items": rows,
    }


def _single_row(item: Item, number: int, answer: str, reply: Reply) -> Row:
    """One turn (`number` from 0)."""
    rating, problem = (None, "refused") if reply.refused else read_rating(reply.text)
    return {
        "id": f"{item.id}/{number + 1}", "turn": number + 1, "question": item.turns[number], "topic": item.topic,
        "answer": answer, "rating": rating, "problem": problem, "expected": list(item.references[number : number + 1]),
        "judge": reply.text, "refused": reply.refused,
    }  # fmt: skip


def _by_turn(ratings: list[list[float | None]]) -> dict[str, Any]:
    """Mean of all turns and of each."""
    turns = {str(at + 1): mean_rating([[row[at]] for row in ratings]) for at in range(len(ratings[0]))}
    return mean_rating(ratings) | {"turns": turns}


def _common(task: Task, items: Sequence[Item], judge: Judge, topics: dict[str, Any]) -> dict[str, Any]:
    """What both blocks say alike; a category without a single verdict has no score and is named apart."""
    return {
        "task": {"name": task.name, "version": task.version, "title": task.title, "scorer": task.scorer},
        "prompt_hash": fingerprint([[item.id, list(item.turns)] for item in items]),
        "gold_hash": gold_hash(items),
        "judge": judge.facts(),
        "topics": {name: block for name, block in topics.items() if block["n"]},
        "topics_without_verdict": [name for name, block in topics.items() if not block["n"]],
    }


def _failures(n: int, problems: Iterable[str], judge: Judge) -> dict[str, int]:
    """How many replies gave no verdict, by reason.

    Raises:
        UserError: n, the number of verdicts that count, is 0: then there is no score.
    """
    counts = Counter(problem for problem in problems if problem)
    if not n:
        told = "、".join(f"{name} {count}" for name, count in counts.items())
        what = f"裁判的回覆一題也讀不出判定 (no verdict could be read)：{told}"
        raise UserError(what, judge.folder, "換一個照格式回答的裁判 (--judge-model)；原文都在快取裡")
    return {"total": counts.total(), **counts}


def _leak_rate(answers: Turns) -> float:
    return round(leak_rate(turn for turns in answers for turn in turns), 6)


def _chunks(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


# -- requests -----------------------------------------------------------------------------------------------------


def _pair_request(task: Task, item: Item, answer_a: str, answer_b: str, judge: Judge) -> Messages:
    fields = {"question": item.turns[0], "answer_a": answer_a, "answer_b": answer_b}
    if needs_reference(task, item.topic):
        return judge.prompts.messages("reference", reference=item.references[0], **fields)
    return judge.prompts.messages("plain", **fields)


def _single_request(task: Task, item: Item, answers: Sequence[str], judge: Judge) -> Messages:
    """The request that rates the last of these answers."""
    fields = {f"question_{at}": text for at, text in enumerate(item.turns[: len(answers)], 1)}
    fields |= {f"answer_{at}": text for at, text in enumerate(answers, 1)}
    name = ("first", "second")[len(answers) - 1]
    if needs_reference(task, item.topic):
        name += "_reference"
        fields |= {f"reference_{at}": text for at, text in enumerate(item.references[: len(answers)], 1)}
    return judge.prompts.messages(name, **fields)
