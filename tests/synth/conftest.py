"""Small helpers: settings for a local server, rows of an output folder, a client on a fresh cache."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twllm.synth.cache import Cache
from twllm.synth.client import Client
from twllm.synth.config import BudgetConfig, EndpointConfig, FilterConfig
from twllm.synth.filters import Rules
from twllm.synth.limits import Budget, Stop
from twllm.synth.prompts import load_prompts

MakeClient = Callable[..., Client]


def endpoint(url: str, **more: Any) -> EndpointConfig:
    return EndpointConfig(**{"url": url, "model": "m", "timeout_s": 5.0, "backoff_s": 0.01, "max_attempts": 4, **more})


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows_of(out: Path) -> bytes:
    return (out / "conversations.jsonl").read_bytes() + (out / "dropped.jsonl").read_bytes()


def everything(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.iterdir())}


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    with Cache(tmp_path / "cache") as cache:
        yield cache


@pytest.fixture
def make_client(cache: Cache) -> MakeClient:
    """To be called inside a running loop."""

    def make(url: str, budget: BudgetConfig | None = None, **more: Any) -> Client:
        return Client(endpoint(url, **more), cache, Budget(budget or BudgetConfig(), 0, 0), Stop())

    return make


@pytest.fixture(scope="session")
def rules() -> Rules:
    return Rules(FilterConfig(), load_prompts())
