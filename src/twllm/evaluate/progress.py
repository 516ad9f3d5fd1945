"""Work in batches under a progress bar; results stored as they come, so that nothing is asked twice after a break."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from twllm.evaluate.responses import ResponseFile
from twllm.evaluate.task import Response

T = TypeVar("T")


def batches(things: Sequence[T], size: int, total: int) -> Iterator[Sequence[T]]:
    """Batches of what is left of `total`; the last things first: sorted by length, a lack of memory shows at once."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("評測"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("evaluate", total=total, completed=total - len(things))
        for end in range(len(things), 0, -size):
            batch = things[max(0, end - size) : end]
            yield batch
            progress.advance(bar, len(batch))


def store(
    file: ResponseFile, found: Iterable[list[tuple[int, T]]], row: Callable[[int, T], Response]
) -> list[Response]:
    """Write each piece of results down as it comes; all rows, in the order of their numbers.

    `found` gives lists of (number, result). When it fails half-way, what came before is in the file.
    """
    rows: dict[int, Response] = {}
    for piece in found:
        new = {number: row(number, result) for number, result in piece}
        file.append(new.values())
        rows |= new
    return [rows[number] for number in sorted(rows)]
