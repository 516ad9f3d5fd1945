"""Other servers as an engine: vLLM, text-generation-inference, llama.cpp's server, transformers serve, another twllm, or anything
with OpenAI's /v1/completions. Several copies of one model share the load.

Prompts are made here, with the checkpoint's own tokenizer and template (`tokenizer`: its folder), and go as ids where the server
takes ids. Where it takes only text, a prompt is sent if that text becomes the same ids again, and refused otherwise: else a control token
that a user typed would become a real one. One event loop in one thread serves all requests. A request is tried at another copy only while
it has said nothing yet. Cancelling closes the connection, which every server takes as the end.
Not covered: several models behind one engine, chat routes, prompts longer than the server's body limit.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from twllm.artifact import fingerprint
from twllm.errors import UserError
from twllm.serve.engines.checkpoint import default_sampling, end_ids, load_tokenizer, read_generation_config
from twllm.serve.engines.decoding.text import answer_lead
from twllm.serve.engines.decoding.tokens import TokenText, encode_raw
from twllm.serve.engines.interface import GenerateFromSubmit, OnEvent, PromptScores, Sampling, require_room
from twllm.serve.engines.remote.loop_thread import LoopThread
from twllm.serve.engines.remote.reader import AnswerReader, Piece
from twllm.serve.engines.remote.replicas import RemoteOptions, Replica, Replicas
from twllm.serve.engines.remote.wire import (
    Facts,
    RemoteError,
    alternatives,
    completion_body,
    completion_piece,
    error_text,
    require_known,
    sse,
    tgi_body,
    tgi_piece,
)

BUSY = {429, 503}  # another copy may have room; this one is not down
OPEN_S = 60.0  # for all copies to tell what they are
UNLIMITED = 1 << 20


class RemoteEngine(GenerateFromSubmit):
    """`Engine` over one or more addresses."""

    def __init__(
        self, urls: str | Sequence[str], tokenizer: str | Path, *, options: RemoteOptions | None = None,
        allow_template_mismatch: bool = False, context: int | None = None,
    ) -> None:  # fmt: skip
        """Connect; `context` None is what the server says.

        Raises:
            UserError: nobody answers, no tokenizer, or it is another than the server's.
        """
        folder = Path(tokenizer)
        config = read_generation_config(folder)
        self.tokenizer = load_tokenizer(folder, allow_template_mismatch=allow_template_mismatch)
        self.defaults, self.end_ids = default_sampling(config), end_ids(self.tokenizer, config)
        urls = [urls] if isinstance(urls, str) else list(urls)
        self._replicas = Replicas(urls, self.tokenizer, options or RemoteOptions())
        self._names: dict[str, int] | None = None
        self._closed = False
        self._loop = LoopThread("twllm-remote")
        try:
            self._loop.call(self._replicas.open(), OPEN_S)
        except BaseException:
            self.close()
            raise
        self._loop.spawn(self._replicas.watch())
        facts = self.facts
        limits = [n for n in (context, facts.context) if n is not None]
        self.context = min(limits, default=None)
        self.model_fingerprint = fingerprint(["remote", facts.model, self.tokenizer.template_fingerprint])
        self._lead = "" if facts.flavour == "twllm" else answer_lead(self.tokenizer)  # it is gone there already

    @property
    def facts(self) -> Facts:
        """What the servers are."""
        return self._replicas.facts

    def submit(self, prompt_ids: list[int], sampling: Sampling, on_event: OnEvent) -> Callable[[], None]:
        """See `Engine.submit`.

        Raises:
            ContextLengthError: the prompt fills the context.
            UserError: a setting that this server does not know, or a prompt that it cannot be given.
        """
        require_room(prompt_ids, self.context)
        require_known(sampling, self.facts.flavour)
        prompt = self._prompt(prompt_ids)
        room = self.context - len(prompt_ids) if self.context else UNLIMITED
        if sampling.max_tokens is None and not self.context:
            raise UserError(
                "要給 max_tokens：遠端沒說上下文多長 (context unknown)",
                "max_tokens",
                "給 max_tokens，或引擎選項 context",
            )
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        if self._closed:
            raise RuntimeError("the engine is closed")
        return self._loop.spawn(self._answer(prompt, sampling, limit, on_event))

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int = 1) -> list[PromptScores]:
        """See `Engine.prompt_logprobs`: vLLM and twllm echo log-probabilities of ids; others do not."""
        if self.facts.flavour not in ("vllm", "twllm"):
            raise UserError(
                f"遠端（{self.facts.flavour}）不給提示的 log 機率 (no prompt log-probabilities)",
                "echo",
                "改用 vLLM 或本機引擎",
            )
        return self._loop.call(self._score_all(sequences, top))

    def alive(self) -> bool:
        """Whether some copy is up."""
        return not self._closed and any(replica.up for replica in self._replicas.all)

    def load(self) -> tuple[int, int]:
        """(requests under way, 0): who waits, waits there."""
        return sum(replica.running for replica in self._replicas.all), 0

    def close(self) -> None:
        """Drop all connections and end the thread."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(Exception):
            self._loop.call(self._replicas.close(), 10)
        self._loop.close()

    # -- the loop's thread --------------------------------------------------------------------------------------

    async def _answer(self, prompt: Any, sampling: Sampling, limit: int, on_event: OnEvent) -> None:
        """One request at one copy after another until one speaks."""
        result: Exception | None = None
        try:
            await self._try_all(prompt, sampling, limit, on_event)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            result = error
        with contextlib.suppress(Exception):  # a reader that is gone
            on_event(result)

    async def _try_all(self, prompt: Any, sampling: Sampling, limit: int, on_event: OnEvent) -> None:
        tried: list[Replica] = []
        last: Exception = RemoteError("no server is up")
        while (replica := self._replicas.pick(tried)) is not None:
            tried.append(replica)
            reader = AnswerReader(self.tokenizer, self._lead, sampling, self.end_ids)
            replica.running += 1
            try:
                await self._stream(replica, prompt, sampling, limit, reader, on_event)
                return
            except _Busy as error:
                last = error
            except (httpx.HTTPError, RemoteError) as error:
                if isinstance(error, httpx.HTTPError):
                    replica.failed(repr(error))
                last = RemoteError(f"{replica.url}: {error!r}")
                if reader.count:
                    raise last from error
            finally:
                replica.running -= 1
        raise last

    async def _stream(
        self, replica: Replica, prompt: Any, sampling: Sampling, limit: int, reader: AnswerReader, on_event: OnEvent
    ) -> None:
        facts = replica.facts
        assert facts is not None
        tgi = facts.flavour == "tgi"
        body = tgi_body(prompt, sampling, limit) if tgi else completion_body(facts, prompt, sampling, limit)
        path = "/generate_stream" if tgi else "/v1/completions"
        async with replica.client.stream("POST", path, json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                raise _refusal(replica, answer)
            wants = sampling.logprobs is not None
            async for event in sse(answer.aiter_lines()):
                piece = tgi_piece(event, wants) if tgi else completion_piece(event, wants, self._id_of)
                if piece is not None and self._tell(reader, piece, on_event):
                    return
        raise RemoteError("the stream ended in the middle of the answer")

    def _tell(self, reader: AnswerReader, piece: Piece, on_event: OnEvent) -> bool:
        """Hand over a piece's events; whether the answer is over."""
        for event in reader.push(piece):
            on_event(event)
        return reader.ended

    # -- prompts and names --------------------------------------------------------------------------------------

    def _prompt(self, ids: list[int]) -> list[int] | str:
        """The prompt as this server takes it.

        Raises:
            UserError: it has to be text, and no text gives these ids.
        """
        form = self.facts.form
        if form == "ids":
            return ids
        begin = self.tokenizer.bos_id
        sent = ids[1:] if form == "text-bos" and ids[:1] == [begin] else ids
        text: str = self.tokenizer.backend.decode(sent, skip_special_tokens=False)
        again = encode_raw(self.tokenizer, text, bos=False)
        if again != sent or (form == "text-bos" and begin is not None and ids[:1] != [begin]):
            raise UserError(
                "這台伺服器只收文字，這段提示變成文字後會不一樣（例如使用者打了控制字）(as text this prompt would be another)",
                "prompt",
                "改用收 token id 的伺服器（vLLM、llama.cpp、twllm）",
            )
        return text

    def _id_of(self, name: str) -> int | None:
        """The id of a token as servers write it: `token_id:7`, its text, or `bytes:\\xe5`."""
        if name.startswith("token_id:") and name[9:].isdigit():
            return int(name[9:])
        if self._names is None:
            texts = TokenText(self.tokenizer)
            self._names = {texts.name(id): id for id in range(self.tokenizer.vocab_size - 1, -1, -1)}
        return self._names.get(name)

    async def _score_all(self, sequences: Sequence[list[int]], top: int) -> list[PromptScores]:
        return list(await asyncio.gather(*(self._score(list(ids), top) for ids in sequences)))

    async def _score(self, ids: list[int], top: int) -> PromptScores:
        replica = self._replicas.pick([])
        if replica is None or replica.facts is None:
            raise RemoteError("no server is up")
        body: dict[str, Any] = {
            "model": replica.facts.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": max(top, 1),
        }  # fmt: skip
        if replica.facts.flavour == "vllm":
            body["return_tokens_as_token_ids"] = True
        answer = await replica.client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            raise _refusal(replica, answer)
        found = answer.json()["choices"][0]["logprobs"]
        best = [alternatives(row or {}, self._id_of)[:top] for row in found["top_logprobs"][1 : len(ids) + 1]]
        return PromptScores([float(p) for p in found["token_logprobs"][1 : len(ids)]], best)


class _Busy(RemoteError):
    """This copy has no room now."""


def _refusal(replica: Replica, answer: httpx.Response) -> Exception:
    """What a status other than 200 means."""
    try:
        text = error_text(answer.json())
    except ValueError:
        text = answer.text[:500]
    if answer.status_code in BUSY:
        return _Busy(f"{replica.url} has no room ({answer.status_code}): {text}")
    if answer.status_code >= 500 or answer.status_code in (404, 408):
        replica.failed(f"{answer.status_code} {text}")
        return RemoteError(f"{replica.url}: {answer.status_code} {text}")
    return UserError(
        f"遠端拒絕了 (the remote refused): {text}", f"{replica.url} ({answer.status_code})", "照訊息修改請求"
    )


def open_remote(
    model: str | Path, *, threads: int | None = None, allow_template_mismatch: bool = False,
    tokenizer: str | Path | None = None, context: int | None = None, served_model: str | None = None, **options: Any,
) -> RemoteEngine:  # fmt: skip
    """`model`: one address or several separated by commas; `tokenizer`: the folder of the model that is served there;
    `served_model`: which one, where a server has several; the other options are those of `RemoteOptions`.

    Raises:
        UserError: see `RemoteEngine`, or no tokenizer was named.
    """
    if tokenizer is None:
        raise UserError(
            "remote 引擎需要分詞器 (tokenizer needed)", str(model), "--tokenizer 指到遠端模型的資料夾（只要分詞器檔案）"
        )
    urls = [url.strip() for url in str(model).split(",") if url.strip()]
    return RemoteEngine(
        urls,
        tokenizer,
        options=RemoteOptions(model=served_model, **options),
        allow_template_mismatch=allow_template_mismatch,
        context=context,
    )
