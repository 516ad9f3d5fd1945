"""Several copies of one server: who is up, who has least to do, what each can. Used from one event loop.

A copy that does not answer is marked down, asked again after 1 s, 2 s, 4 s … at most a minute, and used again once its /health is well.
Not covered: copies that serve different models (refused), weights of copies.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import httpx

from twllm.errors import UserError
from twllm.serve.engines.decoding.tokens import encode_raw
from twllm.serve.engines.remote.wire import Facts, Flavour, Form, RemoteError, error_text
from twllm.tokens.tokenizer import ChatTokenizer

CONNECT_S = 5.0
HEALTH_S = 5.0  # between health checks of a copy that is up
BACKOFF_S = (1.0, 60.0)  # first and longest pause before a copy that is down is asked again
PROBE = "問"
CONNECTIONS = 1000  # at once to one copy
log = logging.getLogger("twllm.serve")


class Replica:
    """One address."""

    def __init__(self, url: str, key: str | None, silence_s: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.facts: Facts | None = None
        self.up = False
        self.running = 0
        self._failures = 0
        self._next = 0.0
        self.client = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(silence_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=32),
            trust_env=False,
        )

    def failed(self, reason: object) -> None:
        """Mark it down and wait longer each time."""
        if self.up or not self._failures:
            log.warning("remote %s is down: %s", self.url, reason)
        self.up = False
        self._next = time.monotonic() + min(BACKOFF_S[1], BACKOFF_S[0] * 2**self._failures)
        self._failures += 1

    def well(self) -> None:
        """Mark it up."""
        if not self.up:
            log.info("remote %s is up", self.url)
        self.up, self._failures, self._next = True, 0, time.monotonic() + HEALTH_S

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next


class Replicas:
    """All copies, and what they have in common."""

    def __init__(self, urls: Sequence[str], tokenizer: ChatTokenizer, options: "RemoteOptions") -> None:
        self.all = [Replica(url, options.api_key, options.silence_s) for url in urls]
        self._tokenizer, self._options = tokenizer, options
        self._checking: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Ask every copy what it is; one has to answer.

        Raises:
            UserError: none answers, copies differ, or another tokenizer.
        """
        problems = await asyncio.gather(*(self._look(replica) for replica in self.all))
        for problem in problems:
            if isinstance(problem, UserError):
                raise problem
        if not any(replica.up for replica in self.all):
            raise UserError(
                f"連不上遠端 (no answer): {problems[0]}", "、".join(r.url for r in self.all), "檢查網址、金鑰與伺服器"
            )

    @property
    def facts(self) -> Facts:
        """Of the first copy that told; all agree."""
        return next(r.facts for r in self.all if r.facts is not None)

    def pick(self, tried: Sequence[Replica]) -> Replica | None:
        """The copy that is up and has least to do, None if all were tried."""
        left = [r for r in self.all if r.up and r.facts is not None and r not in tried]
        return min(left, key=lambda r: r.running, default=None)

    async def watch(self) -> None:
        """Health checks, forever; a slow copy does not keep the others waiting."""
        while True:
            await asyncio.sleep(0.05 * HEALTH_S)
            busy = {task.get_name() for task in self._checking}
            for replica in self.all:
                if replica.due and replica.url not in busy:
                    task = asyncio.create_task(self._check(replica), name=replica.url)
                    self._checking.add(task)
                    task.add_done_callback(self._checking.discard)

    async def close(self) -> None:
        """Close all connections."""
        for task in self._checking:
            task.cancel()
        for replica in self.all:
            with contextlib.suppress(RuntimeError):
                await replica.client.aclose()

    async def _check(self, replica: Replica) -> None:
        if replica.facts is None:
            problem = await self._look(replica)
            if isinstance(problem, UserError):
                replica.failed(problem.what)
            return
        try:
            answer = await replica.client.get("/health", timeout=CONNECT_S)
        except httpx.HTTPError as error:
            replica.failed(repr(error))
            return
        if answer.status_code >= 500:
            replica.failed(f"/health {answer.status_code}")
        else:
            replica.well()

    async def _look(self, replica: Replica) -> Exception | None:
        """Find out what the server is; what went wrong otherwise."""
        try:
            facts = await self._ask(replica)
            await self._compare(replica, facts)
            others = [r.facts for r in self.all if r.facts is not None]
            if others and (facts.model, facts.flavour) != (others[0].model, others[0].flavour):
                raise UserError(
                    f"幾台伺服器不一樣 (copies differ): {facts.model}、{others[0].model}",
                    replica.url,
                    "只列同一個模型的伺服器",
                )
        except UserError as error:
            return error
        except (httpx.HTTPError, RemoteError) as error:
            replica.failed(repr(error))
            return error
        replica.facts = facts
        replica.well()
        return None

    async def _ask(self, replica: Replica) -> Facts:
        wanted = self._options
        models = await _json(replica, "/v1/models")
        listed = models.get("data")
        entries: list[dict[str, Any]] = listed if isinstance(listed, list) else []
        names = [str(entry["id"]) for entry in entries]
        model = wanted.model or (names[0] if names else "")
        if wanted.model and names and wanted.model not in names:
            raise UserError(f"遠端沒有這個模型 (not served): {model}", replica.url, "可用：" + "、".join(names))
        entry: dict[str, Any] = next((entry for entry in entries if entry["id"] == model), {})
        owner = str(entry.get("owned_by", ""))
        flavour: Flavour = wanted.flavour or (owner if owner in ("vllm", "twllm", "llamacpp") else "openai")  # type: ignore[assignment]
        limit = entry.get("max_model_len")
        info = {} if flavour in ("vllm", "twllm", "llamacpp") else await _json(replica, "/info")
        if flavour == "tgi" or (wanted.flavour is None and flavour == "openai" and "max_total_tokens" in info):
            flavour, model, limit = "tgi", str(info.get("model_id") or model), info.get("max_total_tokens")
        elif not entries and not info and not wanted.model:
            await self._require_answer(replica)
        form = wanted.form or await self._form(replica, flavour, model)
        return Facts(flavour, model, form, int(limit) if limit else None)

    async def _require_answer(self, replica: Replica) -> None:
        """A server that tells nothing about its models: is there one at all?"""
        answer = await replica.client.get("/health", timeout=CONNECT_S)
        if answer.status_code >= 400:
            raise RemoteError(f"{replica.url}/health: {answer.status_code}")

    async def _form(self, replica: Replica, flavour: Flavour, model: str) -> Form:
        """How this server takes prompts: ids, else text, with or without a begin token of its own."""
        if flavour in ("vllm", "twllm", "llamacpp"):
            return "ids"
        begin = self._tokenizer.bos_id
        own = encode_raw(self._tokenizer, PROBE, bos=False)
        if flavour == "tgi":
            answer = await replica.client.post("/tokenize", json={"inputs": PROBE})
            tokens = answer.json() if answer.status_code == 200 else []
            added = begin is not None and (not tokens or tokens[0]["id"] == begin)
            return "text-bos" if added else "text"
        for prompt in (own, PROBE):
            body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
            answer = await replica.client.post("/v1/completions", json=body)
            if answer.status_code == 200:
                break
        else:
            raise RemoteError(f"/v1/completions: {answer.status_code} {error_text(_body(answer))}")
        if prompt is own:
            return "ids"
        counted = (answer.json().get("usage") or {}).get("prompt_tokens")
        return "text-bos" if begin is not None and counted == len(own) + 1 else "text"

    async def _compare(self, replica: Replica, facts: Facts) -> None:
        """The server's own tokenizer, where it shows it, has to be ours.

        Raises:
            UserError: it gives other ids.
        """
        text = "台灣ㄅㄆㄇ，hello 123。"
        body = {"inputs": text} if facts.flavour == "tgi" else {
            "model": facts.model, "prompt": text, "content": text, "add_special_tokens": False,
        }  # fmt: skip
        answer = await replica.client.post("/tokenize", json=body)
        if answer.status_code != 200:
            return
        found = answer.json()
        found = found.get("tokens") if isinstance(found, dict) else found
        ids = [token["id"] if isinstance(token, dict) else token for token in found or []]
        expected = encode_raw(self._tokenizer, text, bos=False)
        if ids[:1] == [self._tokenizer.bos_id] and expected[:1] != ids[:1]:
            ids = ids[1:]
        if ids and ids != expected:
            raise UserError(
                "遠端的分詞器和這裡的不同 (another tokenizer there)", replica.url, "--tokenizer 指到遠端模型的資料夾"
            )


class RemoteOptions:
    """How to reach the servers; None is found out."""

    def __init__(
        self, *, model: str | None = None, flavour: Flavour | None = None, form: Form | None = None,
        api_key: str | None = None, silence_s: float = 120.0,
    ) -> None:  # fmt: skip
        self.model, self.flavour, self.form, self.api_key, self.silence_s = model, flavour, form, api_key, silence_s


async def _json(replica: Replica, path: str) -> dict[str, Any]:
    """A GET's JSON object; {} where the server has no such page.

    Raises:
        UserError: the key is refused.
        httpx.HTTPError: no answer.
    """
    answer = await replica.client.get(path)
    if answer.status_code in (401, 403):
        raise UserError("遠端拒絕這把金鑰 (the remote refuses the key)", replica.url, "檢查 API 金鑰")
    found = _body(answer) if answer.status_code == 200 else {}
    return found if isinstance(found, dict) else {}


def _body(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return answer.text
