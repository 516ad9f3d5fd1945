"""A scripted engine (known answers, real tokenizer and text rules), the real app around it, and a server in a thread."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.engines.decoding.text import AnswerText, answer_lead
from twllm.serve.engines.interface import (
    Engine,
    GenerateFromSubmit,
    OnEvent,
    PromptScores,
    Sampling,
    TokenEvent,
    require_room,
)
from twllm.serve.operation.service import Service
from twllm.serve.start import bind
from twllm.tokens.tokenizer import ChatTokenizer

ANSWER = "台灣最高的山是玉山，標高 3,952 公尺。🏔️「好高喔！」ㄅㄆㄇ 鹽埕、砢磣。"


class ScriptedEngine(GenerateFromSubmit):
    """Answers every prompt with `script(prompt text)`, one id at a time; an Exception in its place is raised midway.

    An answer is a thread; log-probabilities are those of a model that is sure (-0.01) of what it says.
    """

    def __init__(self, tokenizer: ChatTokenizer, script: Callable[[str], str], delay_s: float = 0.0) -> None:
        self.tokenizer, self.script, self.delay_s = tokenizer, script, delay_s
        self.context: int | None = 400
        self.model_fingerprint = "feedbeef00000001"
        self.defaults = Sampling()
        self.end_ids = frozenset({tokenizer.eos_id})
        self.seen: list[Sampling] = []  # settings of each request
        self.prompts: list[str] = []
        self.cancelled = threading.Event()
        self.fail_after: int | None = None
        self.failure: Exception = RuntimeError("secret detail of the inside")
        self.running = 0
        self._lock = threading.Lock()

    def submit(self, prompt_ids: list[int], sampling: Sampling, on_event: OnEvent) -> Callable[[], None]:
        require_room(prompt_ids, self.context)
        self.seen.append(sampling)
        prompt = self.tokenizer.decode(prompt_ids)
        self.prompts.append(prompt)
        cancel = threading.Event()
        ended = threading.Event()

        def run() -> None:
            try:
                for event in self._answer(self.script(prompt), sampling, cancel):
                    on_event(event)
                ended.set()
                on_event(None)
            except Exception as error:
                ended.set()
                on_event(error)
            finally:
                with self._lock:
                    self.running -= 1

        def stop() -> None:
            if not ended.is_set():
                cancel.set()

        with self._lock:
            self.running += 1
        threading.Thread(target=run, daemon=True).start()
        return stop

    def _answer(self, said: str, sampling: Sampling, cancel: threading.Event) -> Iterator[TokenEvent]:
        ids = [*self.tokenizer.encode(" " + said), self.tokenizer.eos_id]
        text = AnswerText(self.tokenizer, answer_lead(self.tokenizer), sampling.stop, keep_stop=sampling.keep_stop)
        for number, id in enumerate(ids[: sampling.max_tokens], 1):
            if cancel.is_set():
                self.cancelled.set()
                return
            if number == self.fail_after:
                raise self.failure
            cancel.wait(self.delay_s)
            last = id == self.tokenizer.eos_id
            piece = text.finish() if last else text.push(id)
            limit = not text.stopped and number == sampling.max_tokens and not last
            piece += text.finish() if limit else ""
            reason = "stop" if last or text.stopped else "length" if limit else None
            top = () if sampling.logprobs is None else ((id, -0.01), (3, -5.0))[: sampling.logprobs]
            logprob = None if sampling.logprobs is None else -0.01
            yield TokenEvent(id, piece, reason, logprob, top, text.matched)
            if text.stopped:
                return

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int = 1) -> list[PromptScores]:
        return [
            PromptScores([-0.01] * (len(ids) - 1), [((id, -0.01),) for id in [*ids[1:], ids[0]]]) for ids in sequences
        ]

    def load(self) -> tuple[int, int]:
        return self.running, 0

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        pass


@pytest.fixture
def scripted(tiny_tokenizer: ChatTokenizer) -> ScriptedEngine:
    return ScriptedEngine(tiny_tokenizer, lambda prompt: ANSWER)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "ratings.db"


@pytest.fixture
def client(scripted: ScriptedEngine, database: Path) -> Iterator[TestClient]:
    """The real app on the scripted engine; errors come back as responses, as they would over the network."""
    app = create_app(Service.single(scripted, RatingStore(database), "玉山-tiny"))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def running(engine: Engine, database: Path) -> Iterator[str]:
    """The app behind a real uvicorn in a thread; the address, such as http://127.0.0.1:40123."""
    import uvicorn

    server_socket = bind("127.0.0.1", 0)
    app = create_app(Service.single(engine, RatingStore(database), "玉山-tiny"))
    config = uvicorn.Config(
        app, log_config=None, ws="none", timeout_graceful_shutdown=1
    )  # dictConfig would close absl's handler, and with it stderr
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [server_socket]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server_socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        server_socket.close()
