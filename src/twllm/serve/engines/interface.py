"""What every engine offers and every route uses: settings, token events, the interface.

An engine turns prompt ids into events; ids are drawn by decoding/sampler.py, text is cut, trimmed and stopped by
decoding/text.py, so that engines differ in speed and not in meaning. Torch is not imported here.
Several answers per request are several requests. Pictures in prompts are ids, too (torch/pictures.py).
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from twllm.errors import UserError
from twllm.tokens.tokenizer import ChatTokenizer

CANCEL_POLL_S = 0.2  # how late a `cancel` is seen while no token comes; chosen


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like: `value` is a JSON schema (dict), a regular expression or a list of choices."""

    kind: Literal["json_object", "json_schema", "regex", "choice"]
    value: Any = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How ids are drawn and when to stop. Temperature 0 is greedy; `max_tokens` None: until the context is full.

    Order of the sampler: logit_bias, penalties, grammar, temperature, top-k, typical-p, top-p, min-p.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    repetition_penalty: float = 1.0  # of ids in prompt and answer (arXiv 1909.05858)
    frequency_penalty: float = 0.0  # times occurrences in the answer (OpenAI)
    presence_penalty: float = 0.0  # once for ids in the answer (OpenAI)
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None  # None: events carry none; n: the chosen id's and those of the n best ids
    processed_logprobs: bool = False  # log-probabilities after penalties, grammar, temperature and cuts, as TGI's are
    grammar: Grammar | None = None
    ignore_eos: bool = False
    keep_stop: bool = False  # the stop string stays in the text, as in TGI


Alternatives = tuple[tuple[int, float], ...]  # (id, log-probability), best first
FLOOR = -9999.0  # the log-probability that stands for minus infinity, which JSON does not have; vLLM's number


@dataclass(frozen=True)
class TokenEvent:
    """One generated token: its id, the text it completes (often ''), and on the last one "stop" or "length".

    `logprob` is of the raw distribution (natural log, before temperature and penalties), as in vLLM and OpenAI.
    `matched` on the last event: the stop string that ended the answer; None for the end token and for "length".
    """

    id: int
    text: str
    finish_reason: str | None = None
    logprob: float | None = None
    top: Alternatives = ()
    matched: str | None = None


OnEvent = Callable[["TokenEvent | Exception | None"], None]  # None: nothing follows


Request = tuple[Sequence[int], Sequence[int]]  # to be scored: context and continuation, at least one token each


class Score(NamedTuple):
    """Sum of log-probabilities of a continuation (natural log), and whether greedy decoding would say it."""

    logprob: float
    greedy: bool


class ContextLengthError(UserError):
    """The prompt leaves no room for an answer."""


class EngineUnavailable(RuntimeError):
    """The engine cannot answer now, whatever the request says: its server is away, or failed in mid-answer."""


class Engine(Protocol):
    """A loaded model that many threads may ask at once."""

    tokenizer: ChatTokenizer
    context: int | None  # longest prompt + answer in tokens, None where the model has no limit
    model_fingerprint: str
    defaults: Sampling  # what a request that says nothing gets: the checkpoint's generation_config.json
    end_ids: frozenset[int]

    def submit(self, prompt_ids: list[int], sampling: Sampling, on_event: OnEvent) -> Callable[[], None]:
        """Queue one request and return at once with its `cancel` (idempotent, from any thread).

        `on_event` is called from the engine's thread and must return quickly: each token's event, then None after the
        last one or a cancel; or an Exception, and nothing after it.

        Raises:
            ContextLengthError: the prompt fills the context.
        """
        ...

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, cancel: threading.Event | None = None
    ) -> Iterator[TokenEvent]:
        """Events of one answer; it ends without a finish_reason when `cancel` is set. Closing the iterator cancels too.

        Raises:
            ContextLengthError: the prompt fills the context.
        """
        ...

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int = 1) -> list["PromptScores"]:
        """Log-probabilities of given ids, nothing generated.

        Raises:
            UserError: this engine cannot tell them.
        """
        ...

    def alive(self) -> bool:
        """Whether a request would be answered."""
        ...

    def load(self) -> tuple[int, int]:
        """(requests being answered, requests waiting)."""
        ...

    def close(self) -> None:
        """Stop answering; running requests end."""
        ...


class GenerateFromSubmit:
    """`generate` over `submit`, for every engine."""

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, cancel: threading.Event | None = None
    ) -> Iterator[TokenEvent]:
        """Events of one answer, see `Engine.generate`; submitted at once, so that what is wrong is said at once."""
        return _Answer(lambda put: self.submit(prompt_ids, sampling, put), cancel)  # type: ignore[attr-defined]


class _Answer(Iterator[TokenEvent]):
    """A queue between the engine's thread and the reader's; letting go of it cancels."""

    def __init__(self, submit: Callable[[OnEvent], Callable[[], None]], cancel: threading.Event | None) -> None:
        self._events: queue.SimpleQueue[TokenEvent | Exception | None] = queue.SimpleQueue()
        self._cancel = cancel
        self._ended = False
        self.close: Callable[[], None] = submit(self._events.put)

    def __next__(self) -> TokenEvent:
        while not self._ended:
            if self._cancel is not None and self._cancel.is_set():
                self.close()
                break
            try:
                event = self._events.get(timeout=None if self._cancel is None else CANCEL_POLL_S)
            except queue.Empty:
                continue
            if isinstance(event, TokenEvent):
                return event
            self._ended = True
            if event is not None:
                raise event
        self._ended = True
        raise StopIteration

    def __del__(self) -> None:
        if hasattr(self, "close"):
            self.close()


@dataclass(frozen=True)
class PromptScores:
    """Of one sequence of n ids: `given[t]` is the log-probability of id t + 1 (n - 1 numbers), `best[t]` row t's best ids (n)."""

    given: list[float]
    best: list[Alternatives]


def require_room(prompt_ids: list[int], context: int | None) -> None:
    """Refuse a prompt that leaves no room for even one token.

    Raises:
        ContextLengthError: both numbers are named.
    """
    if context is not None and len(prompt_ids) >= context:
        raise ContextLengthError(
            f"對話太長：提示有 {len(prompt_ids)} 個 token，模型的上下文只有 {context} 個 (context length exceeded)",
            "messages",
            "開一段新對話，或縮短內容",
        )
