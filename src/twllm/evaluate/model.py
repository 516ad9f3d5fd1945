"""What is evaluated, behind one interface: chats in, answers out; questions in, log-likelihoods of their choices out.

A checkpoint folder here, or a server elsewhere. An answer is None where the prompt leaves the model no room for one. Greedy
decoding on both sides. A local model is known by the hash of its config and weight files; of a server we know only what
/v1/models says about the model, so answers of a server that quietly swapped weights under the same name would be reused.

In bf16 a log-likelihood depends on who is in the batch (up to 0.016) and lies up to 0.03 from fp32's (dev/LOG.md), so two choices closer
than CLOSE are scored again in fp32, where the model is small enough to be held a second time: the answer is then fp32's.
Not covered: sampling, other chat APIs than OpenAI's.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from twllm.artifact import fingerprint, hash_path
from twllm.errors import UserError

if TYPE_CHECKING:
    import httpx

    from twllm.evaluate.ask import Question
    from twllm.serve.engines.interface import Score
    from twllm.serve.engines.torch.engine import TorchEngine

Messages = list[dict[str, str]]
WORKERS = 8  # requests sent at once to a server; chosen, not tuned
TRIES = 4  # per request: 1, 2, 4 seconds apart
TIMEOUT_S = 300
CLOSE = 0.05  # nats; 1,000 TTQA and TMMLU questions, 25 M model, bf16 less fp32: one score up to 0.031, two of a question apart up to 0.045
TWICE_BYTES = 8 << 30  # fp32 weights that are worth a second copy in memory: chosen, not tuned
T = TypeVar("T")
R = TypeVar("R")


class Model(Protocol):
    """Anything that answers chats. Answers come in the order of the chats, without outer white space."""

    fingerprint: str
    template_fingerprint: str

    def __call__(self, chats: Sequence[Messages]) -> list[str | None]: ...


class LocalModel:
    """A Hugging Face checkpoint folder, answered by the torch engine's batched greedy decoding."""

    def __init__(
        self, folder: str | Path, max_new_tokens: int, precision: Literal["auto", "fp32", "bf16"] = "auto"
    ) -> None:
        """Load the model; `precision` auto is bf16 where the hardware multiplies it, with close choices decided in fp32.

        Raises:
            UserError: no such folder, no model or tokenizer in it, or not the template it was trained with.
        """
        from twllm.serve.engines.interface import Sampling
        from twllm.serve.engines.torch.engine import TorchEngine

        self._folder, self._exact = folder, precision == "auto"
        self._engine = TorchEngine(folder, precision=precision)
        self._fp32: TorchEngine | None = None
        self._tokenizer = self._engine.tokenizer
        self._sampling = Sampling(temperature=0.0, max_tokens=max_new_tokens)
        self.fingerprint = model_fingerprint(Path(folder))
        self.template_fingerprint = self._tokenizer.template_fingerprint

    def __call__(self, chats: Sequence[Messages]) -> list[str | None]:
        """Greedy answers."""
        prompts = [self._encode(messages) for messages in chats]
        room = self._engine.context
        fitting = [ids for ids in prompts if room is None or len(ids) < room]
        answers = iter(self._engine.generate_batch(fitting, self._sampling))
        return [
            self._tokenizer.decode(next(answers)).strip() if room is None or len(ids) < room else None
            for ids in prompts
        ]

    @property
    def order(self) -> str:
        """By what prompts are best sorted: `prompt` where shared beginnings are computed once, `length` where rows are padded."""
        return "prompt" if self._engine.packed and self._engine.device == "cpu" else "length"

    @property
    def precision(self) -> str:
        """`fp32` or `bf16`, and whether close choices are decided in fp32."""
        name = str(self._engine.model.dtype).removeprefix("torch.").replace("float", "fp").replace("bfp", "bf")
        return name + (", close choices in fp32" if self._twice() else "")

    def scores(self, questions: "Sequence[Question]") -> "Iterator[list[tuple[int, list[Score] | None]]]":
        """(number, one score a choice) of each question, None where it is too long for the model; all at once."""
        from twllm.evaluate.ask import encode_questions

        pairs = encode_questions(self._tokenizer, questions)
        room = self._engine.context
        fitting = [i for i, p in enumerate(pairs) if room is None or max(len(a) + len(b) for a, b in p) <= room + 1]
        found = dict(zip(fitting, _score_all(self._engine, [pairs[i] for i in fitting]), strict=True))
        if self._twice() and (close := [i for i in fitting if is_close(found[i], questions[i].choices)]):
            found.update(zip(close, _score_all(self._second(), [pairs[i] for i in close]), strict=True))
        yield [(i, found.get(i)) for i in range(len(questions))]

    def _twice(self) -> bool:
        """Whether close choices get a second look."""
        model = self._engine.model
        return self._exact and model.dtype.itemsize < 4 and 4 * model.num_parameters() <= TWICE_BYTES

    def _second(self) -> "TorchEngine":
        from twllm.serve.engines.torch.engine import TorchEngine

        if self._fp32 is None:
            self._fp32 = TorchEngine(self._folder, precision="fp32")
        return self._fp32

    def _encode(self, messages: Messages) -> list[int]:
        """Ids of the chat; an assistant's message at its end is what the answer is made to begin with."""
        *asked, last = messages
        if last["role"] != "assistant":
            return self._tokenizer.encode_chat(messages, add_generation_prompt=True).ids
        return self._tokenizer.encode_chat(asked, add_generation_prompt=True, begin_answer=last["content"]).ids


def _score_all(engine: "TorchEngine", pairs: Sequence[Sequence[Any]]) -> "list[list[Score]]":
    """One call for the choices of all questions."""
    scores = iter(engine.score_batch([pair for choices in pairs for pair in choices]))
    return [[next(scores) for _ in choices] for choices in pairs]


def is_close(scores: "Sequence[Score]", choices: Sequence[str]) -> bool:
    """Whether bf16 may have put another choice first, by sum or by sum per character."""
    sums = sorted((score.logprob for score in scores), reverse=True)
    norms = sorted(
        (
            (score.logprob / max(1, len(c.strip())), max(1, len(c.strip())))
            for score, c in zip(scores, choices, strict=True)
        ),
        reverse=True,
    )
    if len(sums) < 2:
        return False
    (first, a), (second, b) = norms[:2]
    return sums[0] - sums[1] < CLOSE or first - second < CLOSE / 2 / a + CLOSE / 2 / b


def model_fingerprint(folder: Path) -> str:
    """Hash of `config.json`, `generation_config.json` and every weight file, all bytes."""
    files = sorted([*folder.glob("*config.json"), *folder.glob("*.safetensors")])
    return fingerprint([[file.name, hash_path(file)] for file in files])


class HttpModel:
    """An OpenAI-compatible server. `OPENAI_API_KEY` is sent when set."""

    order, precision = "length", "the server's"

    def __init__(
        self, url: str, max_new_tokens: int, client: "httpx.Client | None" = None, tokenizer: str | Path | None = None
    ) -> None:
        """Ask the server which model it serves; `client` replaces the connection (tests), `tokenizer` makes ids for `scores`.

        Raises:
            UserError: nobody answers at the address, or it is not such a server.
        """
        import httpx

        from twllm.evaluate.echo import EchoScorer

        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = client or httpx.Client(timeout=TIMEOUT_S, headers=headers)
        self._max_new_tokens = max_new_tokens
        listed = self._request("GET", "/models").get("data")
        if not isinstance(listed, list) or not listed:
            raise UserError(
                "伺服器沒有說它有哪個模型 (no model listed)", f"{self._url}/models", "確認這是 OpenAI 相容的伺服器"
            )
        self._model = str(listed[0]["id"])
        self._continues = listed[0].get("owned_by") == "twllm"  # our server goes on with a begun answer
        self.fingerprint = fingerprint(["http", self._url, listed[0]])
        self._echo = EchoScorer(self._from_root, self._model, self._url, tokenizer)
        self.template_fingerprint = self._echo.template_fingerprint  # '': the server's own business

    def __call__(self, chats: Sequence[Messages]) -> list[str | None]:
        """Greedy answers, several requests at once."""
        found = dict(pair for piece in self.stream(chats) for pair in piece)
        return [found[number] for number in range(len(chats))]

    def stream(self, chats: Sequence[Messages]) -> Iterator[list[tuple[int, str | None]]]:
        """(number, answer) as they come. When the server dies, those that were under way come first and then the error."""
        return _each(self._answer, chats)

    def scores(self, questions: "Sequence[Question]") -> "Iterator[list[tuple[int, list[Score] | None]]]":
        """(number, one score a choice) of each question as they come, None where it is too long for the model."""
        return _each(self._echo.scores, questions)

    def _from_root(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._request(method, path.removeprefix("/v1"), body, "" if path.startswith("/v1") else "/v1")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _answer(self, messages: Messages) -> str | None:
        begun = self._continues and messages[-1]["role"] == "assistant"
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages if begun else _fold_prefix(messages),
            **({"add_generation_prompt": False, "continue_final_message": True} if begun else {}),
            "temperature": 0,
            "max_tokens": self._max_new_tokens,
        }
        reply = self._request("POST", "/chat/completions", body)
        if not reply:
            return None
        try:
            return (reply["choices"][0]["message"]["content"] or "").strip()
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError("回覆不是 OpenAI 格式 (unexpected reply)", self._url, f"收到 {str(reply)[:200]}") from error

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None, cut: str = "") -> dict[str, Any]:
        """One request, tried again when the server is busy or failing; {} when the prompt is too long for the model."""
        import httpx

        problem, address = "", self._url.removesuffix(cut) + path
        for attempt in range(TRIES):
            if attempt:
                time.sleep(2 ** (attempt - 1))
            try:
                reply = self._client.request(method, address, json=body)
            except httpx.TransportError as error:
                problem = str(error)
                if isinstance(error, httpx.ConnectError) and method == "GET":
                    break
                continue
            if reply.status_code == 200:
                return _json(reply, address)
            if reply.status_code == 400 and "context_length_exceeded" in reply.text:
                return {}
            problem = f"HTTP {reply.status_code}: {reply.text[:300]}"
            if reply.status_code != 429 and reply.status_code < 500:
                break
        raise UserError(f"伺服器沒有回答 (server error)：{problem}", address, "確認網址，以及伺服器正在執行")


def _each(work: Callable[[T], R], things: Sequence[T]) -> Iterator[list[tuple[int, R]]]:
    """Results of several calls at once, as they come; after the first failure nothing new is begun."""
    pool = ThreadPoolExecutor(WORKERS)
    numbers = {pool.submit(work, thing): number for number, thing in enumerate(things)}
    waiting, failure = set(numbers), None
    try:
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            if good := [future for future in done if future.exception() is None]:
                yield [(numbers[future], future.result()) for future in good]
            if failure is None and len(good) < len(done):
                failure = next(future.exception() for future in done if future.exception())
                waiting = {future for future in waiting if not future.cancel()}
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


def _fold_prefix(messages: Messages) -> Messages:
    """A chat for a server: what the answer should begin with goes to the end of the question, since a chat API begins its own."""
    *asked, last = messages
    if last["role"] != "assistant" or not asked:
        return messages
    return [*asked[:-1], {**asked[-1], "content": asked[-1]["content"] + last["content"].strip()}]


def _json(reply: "httpx.Response", where: str) -> dict[str, Any]:
    try:
        value = reply.json()
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError("回覆不是 JSON (not JSON)", where, "確認這是 OpenAI 相容的伺服器") from error
    return value


def open_model(
    model: str,
    max_new_tokens: int,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    tokenizer: str | Path | None = None,
) -> Model:
    """The model behind a folder, a hub name or an http(s) address; `tokenizer` makes a server's prompt ids."""
    if model.startswith(("http://", "https://")):
        return HttpModel(model, max_new_tokens, tokenizer=tokenizer)
    from twllm.evaluate.turns import AnswerFile, is_answer_file

    if is_answer_file(model):
        return AnswerFile(Path(model))
    from twllm.model.hub import fetch

    return LocalModel(fetch(model), max_new_tokens, precision)
