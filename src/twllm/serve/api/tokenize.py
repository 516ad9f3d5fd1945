"""/tokenize, /detokenize, /tokenizer_info: the tokenizer over HTTP, in the shapes of vLLM (`prompt`, `messages`) and TGI (`inputs`).

lm-evaluation-harness probes them (`tokenizer_backend=auto`) and then sends ids made here. It asks without a begin token
whatever its `add_bos_token` says: for a model whose tokenizer adds one, give it `tokenizer_backend=huggingface`.
"""

from typing import Any

from fastapi import APIRouter
from pydantic import model_validator

from twllm.serve.api.chat.pictures import place
from twllm.serve.api.chat.shapes import Message
from twllm.serve.api.shapes import Id, Shape
from twllm.serve.engines.decoding.tokens import TokenText, encode_raw
from twllm.serve.errors import ApiError
from twllm.serve.operation.service import Service


class TokenizeRequest(Shape):
    """Body of POST /tokenize: one of `prompt`, `messages` (vLLM) and `inputs` (TGI)."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    inputs: str | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if sum(given is not None for given in (self.prompt, self.messages, self.inputs)) != 1:
            raise ValueError("prompt、messages、inputs 要有一個，也只能有一個 (exactly one of them)")
        return self


class DetokenizeRequest(Shape):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: list[Id]


def tokenize_routes(service: Service) -> APIRouter:
    """The router for the tokenizers of a service."""
    router = APIRouter()

    @router.get("/tokenizer_info")
    def info(model: str | None = None) -> dict[str, Any]:
        picked = service.pick(model)
        tokenizer = picked.engine.tokenizer
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.bos or None,
            "eos_token": tokenizer.eos,
            "pad_token": tokenizer.pad or None,
            "chat_template": tokenizer.template or None,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": service.context(picked),
        }

    @router.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> Any:
        model = service.pick(body.model)
        tokenizer, texts = model.engine.tokenizer, model.texts
        if body.inputs is not None:
            return simple_tokens(body.inputs, encode_raw(tokenizer, body.inputs, bos=body.add_special_tokens), texts)
        if body.messages is not None:
            messages = place([message.plain() for message in body.messages], ())
            ids = tokenizer.encode_chat(messages, add_generation_prompt=body.add_generation_prompt).ids
        else:
            ids = encode_raw(tokenizer, body.prompt or "", bos=body.add_special_tokens)
        names = [texts.name(id) for id in ids] if body.return_token_strs else None
        return {"count": len(ids), "max_model_len": service.context(model), "tokens": ids, "token_strs": names}

    @router.post("/detokenize")
    def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        tokenizer = service.pick(body.model).engine.tokenizer
        unknown = [id for id in body.tokens if id >= tokenizer.vocab_size]
        if unknown:
            raise ApiError(f"詞彙裡沒有 {unknown[0]} 號 (no such token id)", param="tokens")
        return {"prompt": tokenizer.backend.decode(body.tokens, skip_special_tokens=False)}

    return router


def simple_tokens(text: str, ids: list[int], texts: TokenText) -> list[dict[str, Any]]:
    """TGI's list of tokens with the characters of `text` that each covers."""
    starts = texts.offsets(ids, text)
    ends = [*starts[1:], len(text)]
    return [
        {"id": id, "text": texts.name(id), "start": start, "stop": end}
        for id, start, end in zip(ids, starts, ends, strict=True)
    ]
