"""GET /api/contract: what decides how this server turns a chat into an answer, for `twllm doctor` and for people who copy a model."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from twllm.serve.operation.service import Service
from twllm.tokens.contract import default_system


def contract_routes(service: Service) -> APIRouter:
    """The router; `?model=` picks one of several models."""
    router = APIRouter()

    @router.get("/api/contract")
    def contract(model: str | None = None) -> dict[str, Any]:
        served = service.pick(model)
        engine, tokenizer = served.engine, served.engine.tokenizer
        weights = getattr(engine, "model", None)
        return {
            "model": served.name,
            "engine": type(engine).__name__,
            "precision": str(weights.dtype).removeprefix("torch.") if weights is not None else None,
            "context": service.context(served),
            "model_fingerprint": engine.model_fingerprint,
            "template_fingerprint": tokenizer.template_fingerprint,
            "template": tokenizer.template,
            "system": default_system(tokenizer),
            "bos": tokenizer.bos or None,
            "eos": tokenizer.eos,
            "end_ids": sorted(engine.end_ids),
            "defaults": asdict(engine.defaults),
        }

    return router
