"""The shapes that all routes share. Fields we do not know are ignored; null means "not given"."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Id = Annotated[int, Field(ge=0, strict=True)]  # of a token


def pick(given: Any, default: Any) -> Any:
    """What is given, else the default."""
    return default if given is None else given


class Shape(BaseModel):
    """A JSON object of the API; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class StreamOptions(Shape):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class ErrorDetail(Shape):
    """What is wrong: `param` names the field, `code` is for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Shape):
    """Every error of the OpenAI API; `error_type` beside it is TGI's word, which huggingface_hub reads."""

    error: ErrorDetail
    error_type: str


class Usage(Shape):
    """Token counts; the end token counts as generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "the request cannot be fulfilled", 401: "no or a wrong API key", 403: "the key may not do this",
        404: "no such model", 408: "the body took too long", 413: "the body is too large", 422: "never; it is 400",
        429: "too many requests; see Retry-After", 500: "a bug; the log has the details",
        503: "the server is stopping, too busy or not healthy",
    }.items()
}  # fmt: skip
EVENTS = {
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
    "description": "an answer, or a stream of chunks",
}
