"""vLLM through stand-ins: an executable that answers as `vllm serve` does, and a module with the calls of its v1 engine."""

import asyncio
import os
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twllm.errors import UserError
from twllm.serve.engines import open_engine
from twllm.serve.engines.interface import Grammar, Sampling
from twllm.tokens.tokenizer import ChatTokenizer

ANSWER = "玉山，標高 3,952 公尺。🏔️"
ROOT = Path(__file__).parents[3]


def ids_of(tokenizer: ChatTokenizer) -> list[int]:
    return [*tokenizer.encode(" " + ANSWER), tokenizer.eos_id]


def prompt(engine: Any) -> list[int]:
    chat = [{"role": "user", "content": "玉山多高？"}]
    return list(engine.tokenizer.encode_chat(chat, add_generation_prompt=True).ids)


# -- its server as a child ----------------------------------------------------------------------------------------

SERVER = """#!{python}
import json, os, sys, time
from pathlib import Path
folder = Path({folder!r})
(folder / "arguments").write_text(json.dumps(sys.argv[1:]))
(folder / "pid").write_text(str(os.getpid()))
print("loading weights 中", flush=True)
if (folder / "fails").exists():
    print("ValueError: out of memory", file=sys.stderr)
    sys.exit(3)
if (folder / "sleeps").exists():
    time.sleep(60)
sys.path.insert(0, {root!r})
import uvicorn
from tests.serve.engines.other_servers import Script, other_app
from twllm.tokens.tokenizer import ChatTokenizer
port = int(sys.argv[sys.argv.index("--port") + 1])
script = Script(ChatTokenizer.load(sys.argv[2]), answer={answer!r}, kind="vllm", model=sys.argv[2])
uvicorn.run(other_app(script), port=port, log_level="warning")
"""


@pytest.fixture
def executable(tmp_path: Path) -> Path:
    file = tmp_path / "bin" / "vllm"
    file.parent.mkdir()
    file.write_text(SERVER.format(python=sys.executable, folder=str(tmp_path), root=str(ROOT), answer=" " + ANSWER))
    file.chmod(0o755)
    return file


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_its_server_is_started_asked_and_ended(executable: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    options = {
        "executable": str(executable),
        "tensor_parallel": 2,
        "context": 200,
        "arguments": "--enforce-eager --seed 3",
    }
    engine = open_engine("vllm", tiny_checkpoint, options=options)
    flags = (tmp_path / "arguments").read_text()
    for part in (
        '"serve"',
        '"--tensor-parallel-size", "2"',
        '"--generation-config", "vllm"',
        '"--max-model-len", "200"',
        "--enforce-eager",
    ):
        assert part in flags
    events = list(engine.generate(prompt(engine), Sampling(max_tokens=60)))
    assert "".join(e.text for e in events) == ANSWER
    assert [e.id for e in events] == ids_of(engine.tokenizer)
    assert engine.context == 200
    assert engine.alive()
    pid = int((tmp_path / "pid").read_text())
    engine.close()
    assert not alive(pid)
    assert not engine.alive()


def test_a_server_that_dies_is_noticed(executable: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    engine = open_engine("vllm", tiny_checkpoint, options={"executable": str(executable)})
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    end = time.monotonic() + 10
    while engine.alive():
        assert time.monotonic() < end
        time.sleep(0.01)
    engine.close()


def test_a_server_that_does_not_start(executable: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "fails").touch()
    with pytest.raises(UserError, match="out of memory"):
        open_engine("vllm", tiny_checkpoint, options={"executable": str(executable)})
    (tmp_path / "fails").unlink()
    (tmp_path / "sleeps").touch()
    with pytest.raises(UserError, match="not ready in time"):
        open_engine("vllm", tiny_checkpoint, options={"executable": str(executable), "start_s": 1.0})
    assert not alive(int((tmp_path / "pid").read_text()))
    with pytest.raises(UserError, match="not found"):
        open_engine("vllm", tiny_checkpoint, options={"executable": "/no/such/vllm"})


# -- in this process ----------------------------------------------------------------------------------------------


class FakeLLM:
    """The part of AsyncLLM that is used; its answers come two ids at a time."""

    made: list[Any] = []  # noqa: RUF012

    def __init__(self, arguments: Any) -> None:
        asyncio.get_running_loop()  # it has to be made inside the loop
        self.arguments, self.aborted, self.stopped, self.errored = arguments, [], False, False
        self.requests: list[Any] = []
        self.model_config = types.SimpleNamespace(max_model_len=arguments.max_model_len)
        self.ids = ids_of(ChatTokenizer.load(arguments.model))
        self.delay_s = 0.0
        self.made.append(self)

    @classmethod
    def from_engine_args(cls, arguments: Any) -> "FakeLLM":
        return cls(arguments)

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> Any:
        self.requests.append((prompt, sampling_params, request_id))
        ids = self.ids[: sampling_params.max_tokens]
        for start in range(0, len(ids), 2):
            await asyncio.sleep(self.delay_s)
            part = ids[start : start + 2]
            reason = None if start + 2 < len(ids) else "stop" if part[-1] == self.ids[-1] else "length"
            rows = None
            if sampling_params.logprobs is not None:
                rows = [
                    {id: types.SimpleNamespace(logprob=-0.5), 9: types.SimpleNamespace(logprob=-0.1)} for id in part
                ]
            output = types.SimpleNamespace(token_ids=part, text="", finish_reason=reason, logprobs=rows)
            yield types.SimpleNamespace(outputs=[output], finished=reason is not None)

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def shutdown(self) -> None:
        self.stopped = True


class Settings(types.SimpleNamespace):
    """Takes and shows any keywords."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> Iterator[tuple[Any, FakeLLM]]:
    modules = {
        "vllm": {}, "vllm.engine": {}, "vllm.engine.arg_utils": {"AsyncEngineArgs": Settings}, "vllm.v1": {}, "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": FakeLLM},
        "vllm.sampling_params": {"RequestOutputKind": types.SimpleNamespace(DELTA="delta"), "SamplingParams": Settings,
                                 "StructuredOutputsParams": Settings},
    }  # fmt: skip
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        module.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, name, module)
    engine = open_engine("vllm", tiny_checkpoint, options={"context": 200, "tensor_parallel": 4})
    yield engine, FakeLLM.made[-1]
    engine.close()
    assert FakeLLM.made[-1].stopped


def test_in_process(fake: tuple[Any, FakeLLM]) -> None:
    engine, llm = fake
    assert (llm.arguments.tensor_parallel_size, llm.arguments.generation_config) == (4, "vllm")
    events = list(
        engine.generate(prompt(engine), Sampling(temperature=0.5, top_k=4, seed=3, grammar=Grammar("regex", "a")))
    )
    assert "".join(e.text for e in events) == ANSWER
    assert [e.id for e in events] == llm.ids
    assert [e.finish_reason for e in events] == [None] * (len(llm.ids) - 1) + ["stop"]
    given, settings, _ = llm.requests[-1]
    assert given == {"prompt_token_ids": prompt(engine)}
    assert (settings.temperature, settings.top_k, settings.seed) == (0.5, 4, 3)
    assert settings.max_tokens == 200 - len(prompt(engine))
    assert (settings.output_kind, settings.detokenize) == ("delta", False)
    assert settings.structured_outputs.regex == "a"


def test_in_process_stop_length_and_cancel(fake: tuple[Any, FakeLLM]) -> None:
    engine, llm = fake
    events = list(engine.generate(prompt(engine), Sampling(stop=("952",), logprobs=1)))
    assert ("".join(e.text for e in events), events[-1].matched) == ("玉山，標高 3,", "952")
    assert events[0].logprob == -0.5
    assert events[0].top == ((9, -0.1),)
    assert llm.requests[-1][2] in llm.aborted  # the rest is not computed
    assert list(engine.generate(prompt(engine), Sampling(max_tokens=3)))[-1].finish_reason == "length"
    llm.delay_s = 0.05
    heard: list[Any] = []
    cancel = engine.submit(prompt(engine), Sampling(), heard.append)
    end = time.monotonic() + 10
    while not heard:
        assert time.monotonic() < end
        time.sleep(0.005)
    cancel()
    while heard[-1] is not None or engine.load() != (0, 0):
        assert time.monotonic() < end
        time.sleep(0.005)
    assert llm.requests[-1][2] in llm.aborted
    for sampling in (Sampling(typical_p=0.5), Sampling(processed_logprobs=True, logprobs=1)):
        with pytest.raises(UserError, match="cannot"):
            engine.submit(prompt(engine), sampling, heard.append)
    llm.errored = True
    assert not engine.alive()
