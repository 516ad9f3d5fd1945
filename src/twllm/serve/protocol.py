"""Shapes of what clients send (OpenAI chat completions, ratings) and of errors. Fields we do not know are ignored.

What we know of and cannot do (tools, JSON formats, log-probabilities, n > 1) is refused: an answer that silently
lacks what was asked for is worse than an error. Shapes follow the OpenAI API as `openai` 3.54 sends it; null means
"not given".
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from twllm.serve.generation import Sampling

MAX_TEXT = 200_000  # characters of all messages of a rated conversation together; chosen
MAX_COMMENT = 4_000  # characters; chosen


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
        """`{"error": {message, type, param, code}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def _pick(given: Any, default: Any) -> Any:
    return default if given is None else given


class _Shape(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TextPart(_Shape):
    """One part of a message; only text is known."""

    type: Literal["text"]
    text: str


class Message(_Shape):
    """One turn. `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None

    def plain(self) -> dict[str, str]:
        """Role and text as the chat template takes them."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Shape):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class ChatRequest(_Shape):
    """Body of POST /v1/chat/completions; `top_k`, `repetition_penalty` and `continue_final_message` are vLLM's additions."""

    model: str | None = None  # any name is accepted: one server, one model
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    n: int | None = None
    logprobs: bool | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None  # the answer goes on with the assistant's message at the end

    def begun_answer(self) -> tuple[list[dict[str, str]], str]:
        """(the chat to be answered, what the answer is made to begin with)."""
        messages = [message.plain() for message in self.messages]
        if not self.continue_final_message:
            return messages, ""
        if messages[-1]["role"] != "assistant" or len(messages) < 2 or self.add_generation_prompt:
            why = "continue_final_message 要以助理的話結尾，且 add_generation_prompt 為 false (must end with the assistant)"
            raise ApiError(why, param="continue_final_message")
        return messages[:-1], messages[-1]["content"]

    def refuse_unsupported(self) -> None:
        """Raise ApiError (400) for a wish that this server cannot fulfil."""
        wishes = {
            "n": self.n not in (None, 1),
            "logprobs": bool(self.logprobs),
            "tools": bool(self.tools),
            "response_format": (self.response_format or {}).get("type", "text") != "text",
        }
        for name in (name for name, wished in wishes.items() if wished):
            why = "只支援 n=1 (only n=1)" if name == "n" else f"還不支援 {name} (not supported)"
            raise ApiError(why, param=name, code="unsupported_parameter")

    def sampling(self, defaults: Sampling) -> Sampling:
        """Settings of this request; what it does not say comes from the model's defaults."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            temperature=_pick(self.temperature, defaults.temperature),
            top_p=_pick(self.top_p, defaults.top_p),
            top_k=max(0, _pick(self.top_k, defaults.top_k)),
            max_tokens=_pick(self.max_completion_tokens, _pick(self.max_tokens, defaults.max_tokens)),
            stop=tuple(text for text in stop if text),
            seed=None if self.seed is None else self.seed % 2**64,
            repetition_penalty=_pick(self.repetition_penalty, defaults.repetition_penalty),
        )


class RatedMessage(_Shape):
    """One turn of a rated conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class RatingRequest(_Shape):
    """Body of POST /api/rating: one click on a thumb, or a comment sent after it."""

    conversation_id: Annotated[str, Field(min_length=1, max_length=64)]
    turn: Annotated[int, Field(ge=0, le=10_000)]
    rating: Literal[1, -1]
    comment: Annotated[str, Field(max_length=MAX_COMMENT)] = ""
    consent: bool = False
    user: Annotated[str, Field(max_length=200)] = ""  # a random number that the browser made up; stored as a hash
    messages: Annotated[list[RatedMessage], Field(min_length=2, max_length=1000)]

    @model_validator(mode="after")
    def _check(self) -> "RatingRequest":
        if self.messages[-1].role != "assistant" or not self.messages[-1].content.strip():
            raise ValueError("最後一則訊息必須是模型的回答 (messages must end with an answer)")
        if sum(len(message.content) for message in self.messages) > MAX_TEXT:
            raise ValueError(f"對話超過 {MAX_TEXT} 個字，太長了 (too long)")
        return self
