"""Errors as clients see them, and the shapes that all routes share.

Fields we do not know are ignored. Errors follow the OpenAI API as `openai` 3.5x reads them; null means "not given".
"""

from typing import Any

from pydantic import BaseModel, ConfigDict


class ApiError(Exception):
    """An error told to the client in OpenAI's shape."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.type, self.param, self.code = message, status, type, param, code

    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`, and TGI's `error_type`, which huggingface_hub reads."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error, "error_type": self.error_type}

    @property
    def error_type(self) -> str:
        """TGI's name for this kind of error."""
        return {429: "overloaded", 503: "unhealthy"}.get(
            self.status, "generation" if self.status >= 500 else "validation"
        )


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
