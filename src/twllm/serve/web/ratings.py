"""Routes of ratings: POST /api/rating (one click on a thumb), DELETE /api/ratings (everything of one browser).

A rating is on disk before it is acknowledged. What a person wrote is erased, not hidden, when that browser asks for it:
the browser's number is its only proof, and nobody else knows it.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from twllm.artifact import fingerprint
from twllm.feedback.store import Rating
from twllm.serve.operation.service import Model, Service

MAX_TEXT = 200_000  # characters of all messages of a rated conversation together; chosen
MAX_COMMENT = 4_000  # characters; chosen
REASONS = (
    "correct",
    "clear",
    "local",
    "helpful",
    "wrong",
    "unclear",
    "mainland",
    "refused",
    "unsafe",
    "style",
    "other",
)

User = Annotated[str, Field(max_length=200)]  # a random number that the browser made up; stored as a keyed hash


class Body(BaseModel):
    """A request; fields we do not know are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class RatedMessage(Body):
    """One turn of a rated conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class RatingRequest(Body):
    """Body of POST /api/rating: one click on a thumb, or a reason or comment sent after it."""

    conversation_id: Annotated[str, Field(min_length=1, max_length=64)]
    chat_id: Annotated[str, Field(max_length=64)] = ""
    turn: Annotated[int, Field(ge=0, le=10_000)]
    rating: Literal[1, -1]
    comment: Annotated[str, Field(max_length=MAX_COMMENT)] = ""
    reason: Annotated[str, Field(max_length=32)] = ""
    consent: bool = False
    user: User = ""
    model: str | None = None  # the served model that answered
    messages: Annotated[list[RatedMessage], Field(min_length=2, max_length=1000)]

    @field_validator("reason")
    @classmethod
    def _known(cls, reason: str) -> str:
        return reason if reason in ("", *REASONS) else "other"

    @model_validator(mode="after")
    def _check(self) -> "RatingRequest":
        if self.messages[-1].role != "assistant" or not self.messages[-1].content.strip():
            raise ValueError("最後一則訊息必須是模型的回答 (messages must end with an answer)")
        if sum(len(message.content) for message in self.messages) > MAX_TEXT:
            raise ValueError(f"對話超過 {MAX_TEXT} 個字，太長了 (too long)")
        return self


class EraseRequest(Body):
    """Body of DELETE /api/ratings."""

    user: Annotated[str, Field(min_length=1, max_length=200)]


def facts_of(model: Model) -> dict[str, Any]:
    """What the store keeps of a model."""
    return {
        "model": model.name,
        "model_fingerprint": model.engine.model_fingerprint,
        "template_fingerprint": model.engine.tokenizer.template_fingerprint,
    }


def rating_routes(service: Service) -> APIRouter:
    """The router of a service; these routes block on the disk, so they run in worker threads."""
    router = APIRouter()
    store = service.store

    @router.post("/api/rating")
    def rate(body: RatingRequest) -> dict[str, Any]:
        rating = Rating(
            **body.model_dump(exclude={"user", "messages", "model"}),
            **facts_of(service.models.get(body.model or "", service.default)),
            messages=[message.model_dump() for message in body.messages],
            user_hash=store.pseudonym(body.user),
        )
        return {"stored": True, "id": store.add(rating, fingerprint(service.settings.consent_text))}

    @router.delete("/api/ratings")
    def erase(body: EraseRequest) -> dict[str, Any]:
        counts = store.erase(body.user)
        return {"deleted": counts["ratings"] + counts["votes"]}

    return router
