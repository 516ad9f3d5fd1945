"""vLLM as an engine: in this process where the package is importable, else its own server as a child process.

In process: `AsyncLLM.generate` with prompt ids, `RequestOutputKind.DELTA`, `abort` on cancel. As a child: `vllm serve` on a free loopback
port, waited for, its log kept, spoken to through remote/, ended with us; so vLLM may live in an environment of its own (option
`executable`). Both ask for `generation_config="vllm"`, so that only our settings count, and cut text and stop strings here.
Untested: vLLM itself. It cannot be installed where this was written (no GPU); the calls follow its source of late 2026 (v1 engine,
`vllm/v1/engine/async_llm.py`, `sampling_params.py`, `entrypoints/openai/completion/protocol.py`) and are tested against stand-ins.
Not covered: prompt log-probabilities in process, pipeline parallelism, LoRA.
"""

import asyncio
import collections
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from twllm.errors import UserError
from twllm.model.rope import context_limit
from twllm.serve.engines.checkpoint import load_tokenizer, model_fingerprint, read_facts
from twllm.serve.engines.decoding.text import answer_lead
from twllm.serve.engines.interface import Engine, GenerateFromSubmit, OnEvent, PromptScores, Sampling, require_room
from twllm.serve.engines.remote.engine import RemoteEngine
from twllm.serve.engines.remote.loop_thread import LoopThread
from twllm.serve.engines.remote.reader import AnswerReader, Piece
from twllm.serve.engines.remote.replicas import RemoteOptions
from twllm.serve.engines.remote.wire import require_known

START_S = 1800.0  # loading 70 GB from a slow disk and capturing graphs; chosen
POLL_S = 0.2
STOP_S = 20.0  # between a polite and a hard end
TAIL = 25  # log lines shown when it does not start


def open_vllm(
    model: str | Path, *, threads: int | None = None, allow_template_mismatch: bool = False, tensor_parallel: int = 1,
    context: int | None = None, executable: str | None = None, arguments: str | Sequence[str] = (), in_process: bool | None = None,
    start_s: float = START_S,
) -> Engine:  # fmt: skip
    """vLLM with `tensor_parallel` GPUs. `in_process` None: where vllm is importable and no executable is named.

    Raises:
        UserError: vLLM is not here, or did not start (its last log lines are shown).
    """
    folder = Path(model)
    load_tokenizer(folder, allow_template_mismatch=allow_template_mismatch)  # refuse before a slow start
    context = context or linear_limit(folder)
    if in_process is None:
        in_process = executable is None and not arguments and importlib.util.find_spec("vllm") is not None
    if in_process:
        return VllmEngine(
            folder, tensor_parallel=tensor_parallel, context=context, allow_template_mismatch=allow_template_mismatch
        )
    found = shutil.which(executable or "vllm")
    if found is None:
        raise UserError(
            f"找不到 vLLM (not found): {executable or 'vllm'}",
            "--engine vllm",
            "pip install vllm（需要 GPU），或用選項 executable 指到另一個環境的 vllm",
        )
    more = shlex.split(arguments) if isinstance(arguments, str) else arguments
    flags = [*_flags(tensor_parallel, context), *more]
    server = VllmServer(found, folder, flags, start_s)
    try:
        return _ChildEngine(server, folder, allow_template_mismatch, context)
    except BaseException:
        server.close()
        raise


def linear_limit(folder: Path) -> int | None:
    """Positions of a model with linear RoPE scaling: vLLM would multiply them by the factor once more. None: another kind of positions."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return context_limit(config) if "linear" in (rope.get("rope_type"), rope.get("type")) else None


def _flags(tensor_parallel: int, context: int | None) -> list[str]:
    flags = ["--tensor-parallel-size", str(tensor_parallel), "--generation-config", "vllm"]
    return [*flags, "--max-model-len", str(context)] if context else flags


class VllmServer:
    """`vllm serve` as a child process."""

    def __init__(self, executable: str, folder: Path, flags: Sequence[str], start_s: float) -> None:
        """Start it and wait until /health is well.

        Raises:
            UserError: it ended, or was not ready in time.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.NamedTemporaryFile(prefix="twllm-vllm-", suffix=".log")  # noqa: SIM115 - as long as the child
        self._process = subprocess.Popen(
            [executable, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), *flags],
            stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            self._wait(start_s)
        except BaseException:
            self.close()
            raise

    def running(self) -> bool:
        return self._process.poll() is None

    def tail(self) -> str:
        """The last lines of its log."""
        with Path(self._log.name).open(encoding="utf-8", errors="replace") as stream:
            return "".join(collections.deque(stream, TAIL)).strip()

    def close(self) -> None:
        """End it and all it started."""
        for sign, patience in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            if not self.running():
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # workers that outlived it
        self._log.close()

    def _wait(self, start_s: float) -> None:
        end = time.monotonic() + start_s
        with httpx.Client(base_url=self.url, trust_env=False, timeout=5) as client:
            while self.running() and time.monotonic() < end:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get("/health").status_code == 200:
                        return
                time.sleep(POLL_S)
        why = (
            "沒有準時就緒 (not ready in time)"
            if self.running()
            else f"結束了，代碼 {self._process.returncode} (it ended)"
        )
        raise UserError(
            f"vLLM 沒有啟動：{why}｜{self.tail()}", "vllm serve", "照上面的紀錄修正；記憶體不夠就減少 context"
        )


class _ChildEngine(RemoteEngine):
    """A remote engine that owns its server."""

    def __init__(self, server: VllmServer, folder: Path, allow_template_mismatch: bool, context: int | None) -> None:
        self._server = server
        super().__init__(
            server.url, folder, options=RemoteOptions(flavour="vllm"), allow_template_mismatch=allow_template_mismatch,
            context=context,
        )  # fmt: skip
        self.model_fingerprint = model_fingerprint(folder)

    def alive(self) -> bool:
        return self._server.running() and super().alive()

    def close(self) -> None:
        super().close()
        self._server.close()


class VllmEngine(GenerateFromSubmit):
    """vLLM's AsyncLLM in this process, its event loop in one thread."""

    def __init__(
        self, folder: Path, *, tensor_parallel: int, context: int | None, allow_template_mismatch: bool
    ) -> None:
        facts = read_facts(folder, allow_template_mismatch=allow_template_mismatch)
        self.tokenizer, self.defaults, self.end_ids = facts.tokenizer, facts.defaults, facts.end_ids
        self.model_fingerprint = facts.model_fingerprint
        self._lead = answer_lead(self.tokenizer)
        self._running = 0
        self._closed = False
        self._loop = LoopThread("twllm-vllm")
        try:
            self._engine = self._loop.call(self._start(folder, tensor_parallel, context))
        except Exception as error:
            self._loop.close()
            raise UserError(f"vLLM 沒有啟動 (did not start): {error}", folder, "看上面的紀錄") from error
        limit = getattr(self._engine.model_config, "max_model_len", None)
        self.context: int | None = int(limit) if limit else context

    async def _start(self, folder: Path, tensor_parallel: int, context: int | None) -> Any:
        """Within the loop: AsyncLLM ties itself to the loop it is made in."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        more = {"max_model_len": context} if context else {}
        arguments = AsyncEngineArgs(
            model=str(folder), tensor_parallel_size=tensor_parallel, generation_config="vllm", **more
        )
        return AsyncLLM.from_engine_args(arguments)

    def submit(self, prompt_ids: list[int], sampling: Sampling, on_event: OnEvent) -> Callable[[], None]:
        """See `Engine.submit`."""
        require_room(prompt_ids, self.context)
        require_known(sampling, "vllm")
        room = self.context - len(prompt_ids) if self.context else None
        limit = min((n for n in (room, sampling.max_tokens) if n is not None), default=None)
        if self._closed:
            raise RuntimeError("the engine is closed")
        settings = parameters(sampling, limit)
        return self._loop.spawn(self._answer(list(prompt_ids), sampling, settings, on_event))

    async def _answer(self, ids: list[int], sampling: Sampling, settings: Any, on_event: OnEvent) -> None:
        reader = AnswerReader(self.tokenizer, self._lead, sampling, self.end_ids)
        name, result = uuid.uuid4().hex, None
        self._running += 1
        try:
            async for output in self._engine.generate({"prompt_token_ids": ids}, settings, name):
                for event in reader.push(piece(output.outputs[0], sampling.logprobs)):
                    on_event(event)
                if reader.ended:
                    break
            if not reader.ended:
                raise RuntimeError("vLLM ended an answer without a reason")
        except asyncio.CancelledError:
            pass
        except Exception as error:
            result = error
        finally:
            self._running -= 1
            with contextlib.suppress(Exception):  # it may have ended by itself
                await self._engine.abort(name)
        with contextlib.suppress(Exception):  # a reader that is gone
            on_event(result)

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int = 1) -> list[PromptScores]:
        """Not in process.

        Raises:
            UserError: always.
        """
        raise UserError(
            "vLLM 引擎（同一程序）不給提示的 log 機率 (not in process)", "echo", "引擎選項 in_process=false"
        )

    def alive(self) -> bool:
        """False once closed, or when vLLM's core died."""
        return not self._closed and not getattr(self._engine, "errored", False)

    def load(self) -> tuple[int, int]:
        """(requests under way, 0): vLLM queues them itself."""
        return self._running, 0

    def close(self) -> None:
        """End vLLM and the thread."""
        if not self._closed:
            self._closed = True
            self._engine.shutdown()
            self._loop.close()


def parameters(sampling: Sampling, max_tokens: int | None) -> Any:
    """Our settings as vLLM's `SamplingParams`; text and stop strings are left to us."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    structured = None
    if sampling.grammar is not None:
        kind = sampling.grammar.kind
        value = (
            list(sampling.grammar.value)
            if kind == "choice"
            else True
            if kind == "json_object"
            else sampling.grammar.value
        )
        name = "json" if kind == "json_schema" else kind
        structured = StructuredOutputsParams(**{name: value})
    return SamplingParams(
        temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, min_p=sampling.min_p,
        seed=sampling.seed, max_tokens=max_tokens, ignore_eos=sampling.ignore_eos,
        repetition_penalty=sampling.repetition_penalty, frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty, logit_bias=dict(sampling.logit_bias) or None,
        logprobs=sampling.logprobs, structured_outputs=structured, detokenize=False, output_kind=RequestOutputKind.DELTA,
    )  # fmt: skip


def piece(output: Any, logprobs: int | None) -> Piece:
    """One `CompletionOutput` with the ids that are new in it."""
    ids = tuple(output.token_ids)
    drawn = []
    for id, row in zip(ids, output.logprobs or (), strict=False):
        best = sorted(((other, entry.logprob) for other, entry in row.items()), key=lambda pair: -pair[1])
        drawn.append((float(row[id].logprob), tuple(best[: logprobs or 0])))
    finish = None if output.finish_reason is None else "length" if output.finish_reason == "length" else "stop"
    return Piece(ids, "", tuple(drawn), finish)
