"""Errors as clients see them: in the shape of the OpenAI API, as `openai` 3.5x reads them."""

from typing import Any

CLIENT_CLOSED = 499  # nginx's code for a client that went away; nobody reads it


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
