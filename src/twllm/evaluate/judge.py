"""A judge: a chat model behind an OpenAI-compatible endpoint that is shown answers and says which is better, or how good.

Asked through `twllm.synth`'s client: every paid reply is on disk before it is used, so a run that dies asks only what is
missing; rate limits, retries and a budget are kept. A verdict is read only where the reply states one and no other: what
cannot be read is counted as a failure, never as a tie, a loss or a 5. A request that the endpoint refuses for itself (too
long, content filter) is such a failure too; one that only got no answer ends the run, and the next run asks it again.
Not covered: log-probabilities of the verdict, several judges at once, samples of one judge.
"""

import asyncio
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from twllm.artifact import fingerprint
from twllm.config import Config
from twllm.errors import UserError
from twllm.synth.board import Board
from twllm.synth.cache import Cache
from twllm.synth.client import Client, RequestFailed
from twllm.synth.config import BudgetConfig, EndpointConfig, Positive, make
from twllm.synth.endpoint import address, api_key, public_url
from twllm.synth.filters import Fault
from twllm.synth.limits import Budget, Stop
from twllm.synth.run import Outcome, run_jobs, signals

FOLDER = Path(__file__).parent / "prompts"
Messages = list[dict[str, str]]


class JudgeConfig(Config):
    """Who judges, and how. `--judge-set` changes any of it: `temperature=null`, `endpoint.concurrency=2`, `budget.max_cost=1`."""

    endpoint: EndpointConfig
    budget: BudgetConfig = BudgetConfig()
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0  # None: not sent
    max_tokens: Positive | None = 2048  # as in FastChat's llm_judge; None: not sent


@dataclass(frozen=True)
class Prompts:
    """The wording a judge is asked with: one file of evaluate/prompts."""

    name: str
    version: int
    system: str
    templates: dict[str, str]
    hash: str

    def messages(self, template: str, **fields: str) -> Messages:
        """The request; braces inside the fields stay what they are."""
        return [
            {"role": "system", "content": self.system.strip()},
            {"role": "user", "content": self.templates[template].strip().format(**fields)},
        ]


@cache
def load_prompts(name: str) -> Prompts:
    """The prompts of that name. The hash covers every word of the file, and nothing else."""
    content = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return Prompts(name, content["version"], content["system"], content["templates"], fingerprint(content))


@dataclass(frozen=True)
class Reply:
    """What the judge wrote, as it came; `refused` says why there is nothing."""

    text: str = ""
    refused: str = ""


class Judge:
    """The judge of one task of one run. `folder` keeps what was paid for."""

    def __init__(self, config: JudgeConfig, prompts: Prompts, folder: Path) -> None:
        """Raises UserError where address, key or prices cannot be right; nothing is sent yet."""
        address(config.endpoint.url)
        api_key(config.endpoint)
        if config.budget.max_cost is not None and config.budget.price_in is None and config.budget.price_out is None:
            what, fix = (
                "有 budget.max_cost 就要有價錢 (prices needed)",
                "加上 budget.price_in 與 budget.price_out（每百萬詞元）",
            )
            raise UserError(what, "--judge-set", fix)
        self.config, self.prompts, self.folder = config, prompts, folder
        self._models: set[str] = set()
        self._tokens, self._num_replies = [0, 0], 0

    def ask(self, requests: Sequence[Messages]) -> list[Reply]:
        """The replies, in order; equal requests are asked once.

        Raises:
            UserError: the endpoint refuses or fails, the budget is spent; run again to go on.
            KeyboardInterrupt: Ctrl-C, after the replies under way were stored.
        """
        with Cache(self.folder) as cache:
            outcomes = asyncio.run(self._gather(requests, cache))
            faults = [outcome.fault.detail for outcome in outcomes if outcome and outcome.fault]
            missing = [detail for detail in faults if not _about_the_request(detail)]
            if missing or (outcomes and len(faults) == len(outcomes)):
                cache.forget_failures()
                what = f"裁判有 {len(faults)} 個請求沒有回答 (judge gave no answer)：{(missing or faults)[0]}"
                raise UserError(
                    what, self._where, "看端點的狀況，用同一個指令接著跑；已答的都在快取裡 (run again to go on)"
                )
        return [Reply(outcome.row["text"], outcome.fault.detail if outcome.fault else "") for outcome in _all(outcomes)]

    async def _gather(self, requests: Sequence[Messages], cache: Cache) -> list[Outcome | None]:
        config = self.config
        settings: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        stop = Stop()
        spent = [paid + unknown for paid, unknown in zip(cache.paid(), cache.unknown(), strict=True)]
        budget = Budget(config.budget, *spent)
        with Board("裁判", len(requests), budget) as board, signals(stop, board.say):
            client = Client(config.endpoint, cache, budget, stop)
            client.on_paid = board.paid

            async def work(messages: Messages) -> Outcome:
                try:
                    return Outcome({"text": (await client.ask(messages, **settings)).text})
                except RequestFailed as error:
                    return Outcome({"text": ""}, Fault("endpoint", str(error)))

            try:
                outcomes = await run_jobs(requests, work, config.endpoint.concurrency, stop, board.done)
            finally:
                await client.close()
        self._explain(stop, budget)
        for stored in client.used.values():
            self._models.add(str(stored.response.get("model") or ""))
            self._tokens = [self._tokens[0] + stored.tokens_in, self._tokens[1] + stored.tokens_out]
        self._num_replies += len(client.used)
        return outcomes

    def _explain(self, stop: Stop, budget: Budget) -> None:
        """Raise what ended the asking before all was asked."""
        if stop.reason == "interrupt":
            raise KeyboardInterrupt
        if stop.reason == "budget":
            what = f"裁判的預算用完了 (budget spent)：已用 {budget.tokens_in + budget.tokens_out:,} 個詞元"
            raise UserError(what, self.folder, "加大 --judge-set budget.… 再跑，已付的不會再付")
        if stop.reason:
            what = f"裁判的端點要等 {stop.detail} 秒 (rate limit)"
            raise UserError(what, self._where, "晚點用同一個指令接著跑，已付的不會再付")

    @property
    def _where(self) -> str:
        return public_url(address(self.config.endpoint.url))

    def facts(self) -> dict[str, Any]:
        """For the result: who judged, with which settings and prompt, and what it took."""
        tokens_in, tokens_out = self._tokens
        cost = Budget(self.config.budget, 0, 0).cost(tokens_in, tokens_out)
        return {
            "model": self.config.endpoint.model,
            "answered_as": sorted(self._models - {""}),
            "endpoint": self._where,
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
            "body": self.config.endpoint.body,
            "prompts": {"name": self.prompts.name, "version": self.prompts.version, "hash": self.prompts.hash},
            "replies": self._num_replies,
            "tokens": {"in": tokens_in, "out": tokens_out},
            **({} if cost is None else {"cost": cost}),
        }


def _about_the_request(detail: str) -> bool:
    """Whether the endpoint refused this very request (HTTP 4xx, not tried again), rather than did not answer."""
    return detail.startswith("HTTP 4") and "(attempts)" not in detail


def _all(outcomes: Iterable[Outcome | None]) -> list[Outcome]:
    found = [outcome for outcome in outcomes if outcome is not None]
    assert len(found) == len(list(outcomes)), "a request was left out without a reason"
    return found


def open_judge(more: dict[str, Any], prompts: str, folder: Path) -> Judge:
    """The judge that the options name (judge_url, judge_model, judge_key_env, judge_set).

    Raises:
        UserError: address or model is missing, a setting is unknown, the key's variable is not set.
    """
    for name in ("judge_url", "judge_model"):
        if not more.get(name):
            option = "--" + name.replace("_", "-")
            fix = "例如 --judge-url https://api.openai.com/v1 --judge-model gpt-4o --judge-key-env OPENAI_API_KEY"
            raise UserError(f"這個題組要有裁判 (a judge is needed)：{option}", option, fix)
    endpoint = {"url": more["judge_url"], "model": more["judge_model"], "api_key_env": more.get("judge_key_env") or ""}
    config = make(JudgeConfig, {"endpoint": endpoint}, more.get("judge_set") or ())
    return Judge(config, load_prompts(prompts), folder)


# -- reading verdicts -----------------------------------------------------------------------------------------------

VERDICT = re.compile(r"\[\[([ABC])\]\]")
RATING = re.compile(r"\[\[(\d{1,2}(?:\.\d+)?)\]\]|^[ \t]*評分[：:][ \t]*(\d{1,2}(?:\.\d+)?)[ \t]*$", re.MULTILINE)


def read_verdict(text: str) -> tuple[str, str]:
    """(A, B or C for a tie; '') or ('', why there is none): the marks `[[A]]` in the reply must all say the same.

    >>> read_verdict("甲較完整。[[A]]"), read_verdict("[[A]]……不，[[B]]"), read_verdict("A 比較好")
    (('A', ''), ('', 'several'), ('', 'none'))
    """
    found = set(VERDICT.findall(text))
    return (found.pop(), "") if len(found) == 1 else ("", "several" if found else "none")


def read_rating(text: str) -> tuple[float | None, str]:
    """(1 to 10, '') or (None, why there is none): `[[7]]` or a line 「評分：7」; all in the reply must say the same.

    >>> read_rating("清楚。評分：[[7]]"), read_rating("評分：8.5"), read_rating("[[11]]"), read_rating("我給七分")
    ((7.0, ''), (8.5, ''), (None, 'out_of_range'), (None, 'none'))
    """
    found = {float(one or other) for one, other in RATING.findall(text)}
    if len(found) != 1:
        return None, "several" if found else "none"
    rating = found.pop()
    return (rating, "") if 1 <= rating <= 10 else (None, "out_of_range")
