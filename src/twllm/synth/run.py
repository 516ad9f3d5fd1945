"""A run: jobs through the endpoint, a few at a time; kept and dropped rows in the jobs' order; a folder that appears whole.

Answers arrive in any order, rows do not: what a row is depends on its job and its answers alone, and near-duplicates are
decided in the jobs' order, so the same cache gives the same bytes. A budget that is reached writes what is finished
(`complete = false` in the manifest) and says how to go on; Ctrl-C waits for the answers under way, stores them and writes
nothing. Rows are held in memory until the end: a million is fine, a hundred million is not.
"""

import asyncio
import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from twllm.artifact import write_folder, write_manifest
from twllm.config import Config
from twllm.corpus.similar import SimilarTexts
from twllm.errors import UserError
from twllm.synth.board import Board
from twllm.synth.cache import Cache
from twllm.synth.client import Client
from twllm.synth.config import BudgetConfig, EndpointConfig, FilterConfig
from twllm.synth.endpoint import address, api_key, public_url
from twllm.synth.filters import Fault
from twllm.synth.limits import Budget, Stop, Stopped
from twllm.synth.prompts import Prompts

J = TypeVar("J")
KEPT, DROPPED = "conversations.jsonl", "dropped.jsonl"


@dataclass(frozen=True)
class Outcome:
    """A row, as far as it got, and why it is dropped (None: kept). `parts` are what may not be like another row's."""

    row: dict[str, Any]
    fault: Fault | None = None
    parts: tuple[str, ...] = ()


class Task(Protocol[J]):
    """What selfplay and translate have in common."""

    stage: str
    num_jobs: int | None  # None: not known before the end
    prompts: Prompts

    def config(self) -> Config:
        """The settings that the rows depend on."""

    def filters(self) -> FilterConfig:
        """The limits of the filters."""

    def inputs(self) -> Mapping[str, str]:
        """Hashes of what is read."""

    def jobs(self) -> Iterable[J]:
        """The jobs in order."""

    async def work(self, job: J, client: Client) -> Outcome:
        """One job's row."""


@dataclass(frozen=True)
class Session:
    """Where to, with whom, for how much. `offline`: from the cache alone."""

    out: Path
    endpoint: EndpointConfig
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    offline: bool = False
    retry_failed: bool = False

    @property
    def cache(self) -> Path:
        """The folder beside the output that holds what was paid for."""
        out = Path(os.path.abspath(self.out))  # noqa: PTH100 - `.` gets a name
        return out.with_name(out.name + ".cache")


def make_rows(task: Task[Any], session: Session) -> dict[str, Any]:
    """Run the task and write its folder; the manifest.

    Raises:
        UserError: the endpoint refuses or fails, a rate limit asks for too long a wait, nothing is there to write to.
        KeyboardInterrupt: Ctrl-C, after the answers under way were stored.
    """
    budget = session.budget
    if budget.max_cost is not None and budget.price_in is None and budget.price_out is None:
        raise UserError(
            "有 --max-cost 就要有價錢 (prices needed)", "--max-cost", "加上 --price-in 與 --price-out（每百萬詞元）"
        )
    address(session.endpoint.url)  # mistakes before anything is made
    api_key(session.endpoint)
    with write_folder(session.out) as folder, Cache(session.cache) as cache:
        if session.retry_failed:
            cache.forget_failures()
        outcomes, facts = asyncio.run(_gather(task, session, cache))
        kept, dropped = drop_duplicates(outcomes, task.filters())
        _write_rows(folder / KEPT, kept)
        _write_rows(folder / DROPPED, dropped)
        reasons = Counter(row["reason"] for row in dropped)
        refused = [row for row in dropped if "HTTP 4" in row["detail"]]  # requests of which each was wrong
        if not facts["answers"] and set(reasons) == {"endpoint"} and not refused:  # too few for the client to notice
            cache.forget_failures()
            where, detail = public_url(address(session.endpoint.url)), dropped[0]["detail"]
            raise UserError(
                f"端點一個回答也沒有 (no answer at all)：{detail}",
                where,
                "檢查 --url、端點是否開著，再用同一個指令執行",
            )
        created = facts.pop("created")
        return write_manifest(
            folder,
            task.stage,
            task.config().model_dump(mode="json") | {"model": session.endpoint.model, "body": session.endpoint.body},
            {**task.inputs(), "prompts": task.prompts.fingerprint},
            created=created,
            prompts_version=task.prompts.version,
            endpoint=public_url(address(session.endpoint.url)),
            counts={"kept": len(kept), "dropped": len(dropped), "unfinished": facts.pop("unfinished")},
            reasons=dict(sorted(reasons.items())),
            **facts,
        )


async def _gather(task: Task[Any], session: Session, cache: Cache) -> tuple[list[Outcome], dict[str, Any]]:
    """All outcomes in the jobs' order, and what the manifest tells of how they came about."""
    stop = Stop()
    spent = [paid + unknown for paid, unknown in zip(cache.paid(), cache.unknown(), strict=True)]
    budget = Budget(session.budget, spent[0], spent[1])
    with Board(task.stage, task.num_jobs, budget) as board, signals(stop, board.say):
        async with _client(session, cache, budget, stop) as client:
            client.on_paid = board.paid
            results = await run_jobs(
                task.jobs(), lambda job: task.work(job, client), session.endpoint.concurrency, stop, board.done
            )
    _explain(stop, session, budget)
    used = client.used.values()
    tokens = (sum(stored.tokens_in for stored in used), sum(stored.tokens_out for stored in used))
    newest = max((stored.time for stored in used), default=0.0)
    facts = {
        "complete": not stop.reason,
        "stopped_by": stop.reason,
        "unfinished": sum(result is None for result in results),
        "answers": len(client.used),
        "tokens": {"in": tokens[0], "out": tokens[1]},
        "cost": budget.cost(*tokens),
        "models": sorted({str(stored.response.get("model") or "") for stored in used} - {""}),
        "created": time.strftime(
            "%Y-%m-%dT%H:%M:%SZ", time.gmtime(newest)
        ),  # of the newest answer: a replay says the same
    }
    return [result for result in results if result is not None], facts


@asynccontextmanager
async def _client(session: Session, cache: Cache, budget: Budget, stop: Stop) -> AsyncIterator[Client]:
    client = Client(session.endpoint, cache, budget, stop, session.offline)
    try:
        yield client
    finally:
        await client.close()


async def run_jobs(
    jobs: Iterable[J],
    work: Callable[[J], Awaitable[Outcome]],
    concurrency: int,
    stop: Stop,
    done: Callable[[bool], None],
) -> list[Outcome | None]:
    """Outcomes in the jobs' order, None for a job that the end of the run left unfinished.

    Each worker finishes a job before it takes the next, so that a run that ends early has whole rows.

    Raises:
        Exception: what a job raised first, after the answers under way have come in.
    """
    results: list[Outcome | None] = []
    errors: list[BaseException] = []
    waiting = iter(jobs)

    async def worker() -> None:
        while stop.reason not in ("interrupt", "rate", "error"):
            try:
                job = next(waiting)  # may raise what is wrong with the next row of a file
            except StopIteration:
                return
            except Exception as error:
                errors.append(error)
                stop.set("error")
                return
            at = len(results)
            results.append(None)
            try:
                results[at] = outcome = await work(job)
                done(outcome.fault is None)
            except Stopped:
                pass  # with a budget or offline, later jobs may still be in the cache
            except Exception as error:
                errors.append(error)
                stop.set("error")
            await asyncio.sleep(0)  # a job from the cache never waits; the others want a turn

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    if errors:
        raise errors[0]
    return results


def drop_duplicates(
    outcomes: Iterable[Outcome], filters: FilterConfig
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows to keep, dropped rows with their reason), in order; a row too much like an earlier kept one is dropped."""
    kept: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    seen: defaultdict[int, SimilarTexts] = defaultdict(SimilarTexts)  # the first part of all kept rows, the second …
    for outcome in outcomes:
        row, fault = outcome.row, outcome.fault
        if fault is None and "near_duplicate" not in filters.off:
            found = [seen[part].most_similar(text, filters.near_duplicate) for part, text in enumerate(outcome.parts)]
            same, at = max(found, default=(0.0, -1))
            if at >= 0:
                fault = Fault("near_duplicate", f"{same:.2f} like {kept[at]['id']}")
            else:
                for part, text in enumerate(outcome.parts):
                    seen[part].add(text)
        if fault is None:
            kept.append(row)
        else:
            dropped.append({"id": row["id"], "reason": fault.reason, "detail": fault.detail, "row": row})
    return kept, dropped


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def signals(stop: Stop, say: Callable[[str], None]) -> Iterator[None]:
    """First Ctrl-C (or SIGTERM): no new request, wait for those under way. Second: give them up."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def interrupt() -> None:
        if stop.reason and task is not None:
            task.cancel()
        stop.set("interrupt")
        say(
            "等已送出的回答存好就停；再按一次 Ctrl-C 就不等了 (storing the answers under way; Ctrl-C again to abandon them)"
        )

    caught = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError, NotImplementedError, RuntimeError):  # not the main thread, or Windows
            loop.add_signal_handler(number, interrupt)
            caught.append(number)
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def _explain(stop: Stop, session: Session, budget: Budget) -> None:
    """Raise what ends a run without output."""
    if stop.reason == "interrupt":
        raise KeyboardInterrupt
    if stop.reason == "rate":
        what = f"端點的流量限制要等 {stop.detail} 秒 (rate limit)，超過 {session.endpoint.max_wait_s:g} 秒"
        fix = f"晚點用同一個指令接著跑；已付的 {budget.tokens_in + budget.tokens_out:,} 個詞元都在 {session.cache}"
        raise UserError(what, session.endpoint.url, fix)
