"""Clients that people use, against our server over the network: huggingface_hub here, text-generation in a Python of its own.

text-generation pins an older huggingface_hub: `make tgi-client` puts it into a venv, TWLLM_TGI_CLIENT_PYTHON names its Python.
`openai` is in test_openai, lm-eval in tests/evaluate/test_lmeval_server.py.
"""

import asyncio
import json
import logging
import os
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import ANSWER, ScriptedEngine, running

PROMPT = "台灣最高的山是"
MESSAGES = [{"role": "user", "content": PROMPT}]


def test_huggingface_hub(scripted: ScriptedEngine, database: Path) -> None:
    """Text generation, whole, with details and streamed; chat, whole and streamed; both APIs' errors."""
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError, ValidationError

    with running(scripted, database) as url:
        client = InferenceClient(url, timeout=10)
        assert client.text_generation(PROMPT, max_new_tokens=300) == " " + ANSWER
        output = client.text_generation(
            PROMPT, details=True, max_new_tokens=300, do_sample=True, seed=3, top_n_tokens=2
        )
        assert (output.details.seed, output.details.finish_reason) == (3, "eos_token")
        assert "".join(token.text for token in output.details.tokens if not token.special) == output.generated_text
        pieces = client.text_generation(PROMPT, stream=True, max_new_tokens=300)
        assert "".join(pieces) == " " + ANSWER + "</s>"  # the client leaves special tokens in, with TGI too
        *_, last = client.text_generation(PROMPT, stream=True, details=True, max_new_tokens=300)
        assert last.generated_text == " " + ANSWER
        assert last.details.input_length == len(scripted.tokenizer.encode(PROMPT)) + 1
        with pytest.raises(ValidationError, match="must be <= 400"):
            client.text_generation("ㄅㄆㄇ" * 300, max_new_tokens=5)
        with pytest.raises(ValidationError, match="must be <= 400"):
            list(client.text_generation("ㄅㄆㄇ" * 300, max_new_tokens=5, stream=True))
        chat = client.chat_completion(MESSAGES, max_tokens=300)
        assert chat.choices[0].message.content == ANSWER
        assert chat.system_fingerprint == scripted.model_fingerprint
        chunks = client.chat_completion(MESSAGES, max_tokens=300, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
        with pytest.raises(HfHubHTTPError, match="temperature"):
            client.chat_completion(MESSAGES, temperature=9)
        scripted.fail_after = 3
        logging.getLogger("twllm.serve").setLevel(logging.CRITICAL + 1)
        with pytest.raises(Exception, match="internal error"):
            list(client.text_generation(PROMPT, stream=True))
        with pytest.raises(Exception, match="internal error"):
            list(client.chat_completion(MESSAGES, stream=True))
        logging.getLogger("twllm.serve").setLevel(logging.NOTSET)


def test_huggingface_hubs_tools(scripted: ScriptedEngine, database: Path) -> None:
    from huggingface_hub import InferenceClient

    tool = {"type": "function", "function": {"name": "height", "parameters": {"type": "object", "properties": {}}}}
    scripted.context = 4096
    scripted.script = lambda prompt: '<tool_call>{"name": "height", "arguments": {}}</tool_call>'
    with running(scripted, database) as url:
        client = InferenceClient(url, timeout=10)
        message = client.chat_completion(MESSAGES, tools=[tool]).choices[0].message
        assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [("height", "{}")]
        (call,) = [
            call
            for chunk in client.chat_completion(MESSAGES, tools=[tool], stream=True)
            for call in chunk.choices[0].delta.tool_calls or []
            if call.id
        ]
        assert call.function.name == "height"


def test_huggingface_hubs_async_client(scripted: ScriptedEngine, database: Path) -> None:
    from huggingface_hub import AsyncInferenceClient

    async def ask(url: str) -> list[str]:
        async with AsyncInferenceClient(url, timeout=10) as client:
            return await asyncio.gather(*(client.text_generation(PROMPT, max_new_tokens=300) for _ in range(5)))

    with running(scripted, database) as url:
        assert asyncio.run(ask(url)) == [" " + ANSWER] * 5


def test_text_generation(scripted: ScriptedEngine, database: Path) -> None:
    python = os.environ.get("TWLLM_TGI_CLIENT_PYTHON")
    if not python:
        pytest.skip("make tgi-client, then set TWLLM_TGI_CLIENT_PYTHON=.venv/tgi-client/bin/python")
    script = Path(__file__).with_name("tgi_client.py")
    with running(scripted, database) as url:
        process = subprocess.run(
            [python, "-X", "utf8", str(script), url], capture_output=True, encoding="utf-8", timeout=60, check=False
        )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    text = " " + ANSWER
    assert found["generated"] == found["streamed"] == found["last"] == text
    assert found["async"] == [text] * 4
    assert found["finish"] == "eos_token"
    assert found["stopped"] == PROMPT + text[: text.index("玉山") + 2]
    assert (found["seed"], found["prefill"], found["top"], found["others"]) == (3, 4, 2, 1)
    assert "must be <= 400" in found["long"] == found["long_stream"]
    assert found["chat"] == ANSWER
