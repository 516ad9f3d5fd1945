"""perplexity: bits per character of given texts, all bits over all characters (or the mean over languages); lower is better.

A block has `better = "lower"` and no `correct`; its rows carry the bits of each block of characters, so that two results
can be compared place by place (evaluate/no_harm.py). Rows are stored as they come, a rerun measures only what is missing.
"""

import json
import math
import sys
from collections.abc import Iterable
from typing import Any

from twllm.artifact import fingerprint
from twllm.evaluate.bits import TextBits, Windows, engine_of, interval, text_bits, units_of
from twllm.evaluate.kinds import Session, kind
from twllm.evaluate.score import prompt_hash
from twllm.evaluate.task import Item, Response, Task


@kind("perplexity")
def perplexity(task: Task, items: list[Item], session: Session) -> dict[str, Any]:
    """Bits per character of the items' texts."""
    engine = engine_of(session.model, task.label)
    windows = Windows(int(task.options["window"]), int(task.options["stride"])).within(engine.context)
    return block(task, items, measure(items, session, windows), windows)


def measure(items: list[Item], session: Session, windows: Windows) -> list[TextBits]:
    """One row an item, from the stored ones or measured now.

    Raises:
        UserError: the model is a server.
    """
    engine = engine_of(session.model, "MODEL")
    found: list[TextBits] = []
    for item in _tracked(items):
        key = fingerprint([session.model.fingerprint, str(engine.model.dtype), windows, item.prompt])
        row = session.file.find(item, key)
        if row is None:
            bits = text_bits(engine, item.prompt, windows)
            row = Response(task=item.task, id=item.id, output=json.dumps(bits._asdict()), key=key)
            session.file.append([row])
        else:
            session.reused += 1
        session.kept.append(row)
        found.append(TextBits(**json.loads(row.output)))
    return found


def _tracked(items: list[Item]) -> Iterable[Item]:
    from rich.console import Console
    from rich.progress import track

    return track(items, "每字位元數", console=Console(stderr=True), disable=not sys.stderr.isatty())


def block(task: Task, items: list[Item], found: list[TextBits], windows: Windows) -> dict[str, Any]:
    """The suite's block."""
    groups: dict[str, list[TextBits]] = {}
    for item, bits in zip(items, found, strict=True):
        groups.setdefault(item.topic, []).append(bits)
    topics = {name: _measured(rows) for name, rows in groups.items()}
    whole = _measured(found)
    if task.average == "topics":
        whole["score"] = math.fsum(topic["score"] for topic in topics.values()) / len(topics)
        whole["interval"] = _mean_interval([topic["interval"] for topic in topics.values()], whole["score"])
    return {
        **whole,
        "better": "lower",
        "unit": "bits/char",
        "interval_by": f"bootstrap over {units_of(found)[1]}",
        "average": f"mean of {len(topics)} groups" if task.average == "topics" else "all bits / all characters",
        "windows": windows._asdict(),
        "too_long": 0,
        "task": {"name": task.name, "version": task.version, "title": task.title, "scorer": task.scorer},
        "prompt_hash": prompt_hash(items),
        "topics": topics,
        "items": [_row(item, bits) for item, bits in zip(items, found, strict=True)],
    }


def _measured(rows: list[TextBits]) -> dict[str, Any]:
    """Score, interval and sizes of some documents."""
    bits, chars = math.fsum(row.bits for row in rows), sum(row.chars for row in rows)
    tokens = sum(row.tokens for row in rows)
    limits = interval(units_of(rows)[0])
    return {
        "score": bits / chars,
        "n": len(rows),
        "interval": [round(limit, 6) for limit in limits] if limits else [None, None],
        "chars": chars,
        "tokens": tokens,
        "bits_per_token": bits / max(1, tokens),
    }


def _mean_interval(intervals: list[list[float | None]], mean: float) -> list[float | None]:
    """Of an unweighted mean of independent groups: half widths add in squares."""
    halves = [(high - low) / 2 for low, high in intervals if low is not None and high is not None]
    if len(halves) < len(intervals):
        return [None, None]
    half = math.sqrt(math.fsum(half * half for half in halves)) / len(halves)
    return [round(mean - half, 6), round(mean + half, 6)]


def _row(item: Item, bits: TextBits) -> dict[str, Any]:
    return {
        "id": item.id,
        "question": item.question,
        "topic": item.topic,
        "score": bits.bits / bits.chars,
        "chars": bits.chars,
        "tokens": bits.tokens,
        "blocks": [round(value, 4) for value in bits.blocks],
    }
