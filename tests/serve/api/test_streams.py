"""A stream adds up to the whole answer, byte for byte, and cuts no character: random byte-level vocabularies, random ids, all APIs."""

import json
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.serve.conftest import ScriptedEngine
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.engines.decoding.text import AnswerText, answer_lead
from twllm.serve.engines.interface import Sampling, TokenEvent
from twllm.serve.operation.service import Service
from twllm.tokens.tokenizer import ChatTokenizer

TEXT = "台灣「玉山」高 3,952 公尺🏔️👨‍👩‍👧，é ㄅㄆㄇ\n砢磣…\t<b>USER:</b>"


def vocabulary(seed: int, template: str) -> ChatTokenizer:
    """Bytes and 300 random merges of them: most tokens are pieces of characters, some reach over several."""
    rng = random.Random(seed)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = list(alphabet), []
    shown = {byte: letter for letter in alphabet for byte in _bytes(letter)}
    letters = "".join(shown[byte] for byte in TEXT.encode())
    while len(merges) < 300:
        at = rng.randrange(len(letters) - 1)
        pair = rng.choice([(letters[at], letters[at + 1]), tuple(rng.choices(pieces, k=2))])
        if "".join(pair) not in pieces:
            merges.append(pair)
            pieces.append("".join(pair))
    backend = Tokenizer(models.BPE({piece: id for id, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return ChatTokenizer(backend).with_template(template)


def _bytes(letter: str) -> bytes:
    from twllm.serve.engines.decoding.tokens import LETTERS

    return bytes([LETTERS[letter]])


class RandomIds(ScriptedEngine):
    """Says `ids`, whatever bytes they are."""

    ids: Sequence[int] = ()

    def _answer(self, said: str, sampling: Sampling, cancel: threading.Event) -> Iterator[TokenEvent]:
        text = AnswerText(self.tokenizer, answer_lead(self.tokenizer), sampling.stop)
        for number, id in enumerate(self.ids, 1):
            last, end = number == len(self.ids), id in self.end_ids
            piece = text.finish() if end else text.push(id)
            piece += text.finish() if last and not end and not text.stopped else ""
            reason = "stop" if end or text.stopped else "length" if last else None
            yield TokenEvent(id, piece, reason, -0.5, ((id, -0.5),))
            if reason:
                return


def answers(rng: random.Random, tokenizer: ChatTokenizer) -> list[int]:
    """Random ids, or a text in a random tokenisation, perhaps with an end token."""
    if rng.random() < 0.4:
        ids = rng.choices(range(tokenizer.vocab_size - 4), k=rng.randrange(1, 30))
    else:
        cut = rng.randrange(len(TEXT))
        whole = (TEXT[cut:] + TEXT[:cut]).encode()
        byte_ids = [tokenizer.backend.token_to_id(letter) for byte in whole for letter in [_letter(byte)]]
        ids = tokenizer.encode(TEXT[cut:]) + byte_ids[: rng.randrange(len(byte_ids))]
    return [*ids, tokenizer.eos_id] if rng.random() < 0.5 else ids


def _letter(byte: int) -> str:
    from twllm.serve.engines.decoding.tokens import LETTERS

    return next(letter for letter, value in LETTERS.items() if value == byte)


def events(client: TestClient, path: str, body: dict[str, Any]) -> list[Any]:
    raw = client.post(path, json={**body, "stream": True}).content
    blocks = [block.split(b":", 1)[1].strip() for block in raw.split(b"\n\n") if block]
    for block in blocks:
        block.decode()  # each event is whole UTF-8
    return [json.loads(block) for block in blocks if block != b"[DONE]"]


@pytest.mark.parametrize(("seed", "template"), [(1, "taiwan-llm-v2"), (2, "chatml"), (3, "taiwan-llm-v1")])
def test_streams_add_up(seed: int, template: str, database: Path) -> None:
    rng = random.Random(seed)
    engine = RandomIds(vocabulary(seed, template), lambda prompt: "")
    engine.context = 4000
    app = create_app(Service.single(engine, RatingStore(database), "random"))
    with TestClient(app) as client:
        for _ in range(12):
            engine.ids = answers(rng, engine.tokenizer)
            known = engine.tokenizer.decode([id for id in engine.ids if id not in engine.end_ids])
            stop = [known[at : at + 2] for at in rng.choices(range(len(known) or 1), k=rng.randrange(3)) if known]
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": "山"}], "stop": stop, "logprobs": True}
            whole = client.post("/v1/chat/completions", json=asked).json()["choices"][0]
            chunks = [event["choices"][0] for event in events(client, "/v1/chat/completions", asked)]
            pieces = [chunk["delta"].get("content", "") for chunk in chunks]
            assert "".join(pieces).encode() == whole["message"]["content"].encode()
            tokens = [token for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["content"]]
            assert tokens == whole["logprobs"]["content"]
            if not stop:
                lead = answer_lead(engine.tokenizer)
                assert whole["message"]["content"] == known.removeprefix(lead)
                said = b"".join(bytes(token["bytes"]) for token in tokens)
                assert said.decode(errors="replace") == known
                half = [piece for piece in pieces if "\ufffd" in piece]
                assert "".join(half).count("\ufffd") == known.count("\ufffd")  # only what never was a character

            asked = {"prompt": "山", "stop": stop, "max_tokens": 200, "logprobs": 1, "echo": True}
            whole = client.post("/v1/completions", json=asked).json()["choices"][0]
            chunks = [event["choices"][0] for event in events(client, "/v1/completions", asked)]
            assert "".join(chunk["text"] for chunk in chunks).encode() == whole["text"].encode()
            for name, column in whole["logprobs"].items():
                assert [entry for chunk in chunks if chunk["logprobs"] for entry in chunk["logprobs"][name]] == column
            if not stop:
                assert whole["text"] == "山" + known

            parameters = {"stop": stop, "details": True, "max_new_tokens": 200}
            whole = client.post("/generate", json={"inputs": "山", "parameters": parameters}).json()
            found = events(client, "/", {"inputs": "山", "parameters": parameters})
            assert [event["token"] for event in found] == whole["details"]["tokens"]
            text = "".join(event["token"]["text"] for event in found if not event["token"]["special"])
            assert text == found[-1]["generated_text"] == whole["generated_text"]
            if not stop and not known.endswith("\ufffd"):
                assert text == known
