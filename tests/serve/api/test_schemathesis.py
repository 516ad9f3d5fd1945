"""schemathesis sends what our OpenAPI description allows, and what it forbids, to every route: no 5xx.

Bounded and repeatable: TWLLM_SCHEMATHESIS_EXAMPLES cases per route, from a fixed seed.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from starlette.testclient import TestClient

from tests.serve.conftest import ScriptedEngine
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.operation.service import Model, Service

schemathesis = pytest.importorskip("schemathesis")
EXAMPLES = int(os.environ.get("TWLLM_SCHEMATHESIS_EXAMPLES", "6"))


@pytest.mark.filterwarnings("default")  # schemathesis' and hypothesis' own
def test_no_5xx(scripted: ScriptedEngine, database: Path) -> None:
    from schemathesis import GenerationMode

    scripted.script = lambda prompt: "好。"
    app = create_app(Service({name: Model(name, scripted) for name in ("a", "b")}, RatingStore(database)))
    found: dict[str, list[int]] = {}
    bad: list[str] = []
    with TestClient(app, raise_server_exceptions=False):
        schema = schemathesis.openapi.from_asgi("/openapi.json", app)
        for operation in (result.ok() for result in schema.get_all_operations()):
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                @settings(
                    max_examples=EXAMPLES, database=None, derandomize=True, deadline=None,
                    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                @given(case=operation.as_strategy(generation_mode=mode))
                def send(case: Any) -> None:
                    response = case.call()
                    found.setdefault(case.operation.label, []).append(response.status_code)
                    if response.status_code >= 500:
                        bad.append(f"{response.status_code} {case.as_curl_command()}")

                try:
                    send()
                except Exception as error:
                    if type(error).__name__ != "Unsatisfiable":  # a route without anything that could be wrong
                        raise
    assert bad == []
    assert len(found) >= 10
    assert any(200 in statuses for statuses in found.values())
    assert sum(map(len, found.values())) >= 10 * EXAMPLES
