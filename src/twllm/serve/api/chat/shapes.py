"""Shapes of POST /v1/chat/completions: what clients send (as `openai` 3.5x does, with vLLM's additions) and what they get."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from twllm.serve.api.chat.tool_text import too_deep
from twllm.serve.api.chat.tools import NAME
from twllm.serve.api.sampling import SamplingFields
from twllm.serve.api.shapes import Shape, StreamOptions, Usage
from twllm.serve.engines.interface import Sampling
from twllm.serve.errors import ApiError

MAX_TOOLS = 128  # OpenAI's


class TextPart(Shape):
    """A text of a message."""

    type: Literal["text"]
    text: str


class ImageAddress(Shape):
    """A picture: a data URL, or an http(s) address where the server allows it. `detail` is read and changes nothing."""

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Shape):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageAddress


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class CalledFunction(Shape):
    """Name and arguments (JSON as text) of a call."""

    name: str
    arguments: str | None = None


class ToolCall(Shape):
    """A call that the assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Shape):
    """One turn. `developer` is OpenAI's newer word for `system`; `tool` brings the result of a call."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def pictures(self) -> list[str]:
        """Addresses of its pictures."""
        parts = self.content if isinstance(self.content, list) else ()
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]

    def plain(self) -> dict[str, Any]:
        """The message as the chat template takes it; with pictures, in parts."""
        parts = self.content or ""
        content: str | list[dict[str, Any]]
        if isinstance(parts, str) or not self.pictures:
            content = (
                parts if isinstance(parts, str) else "".join(part.text for part in parts if isinstance(part, TextPart))
            )
        else:
            content = [
                {"type": "text", "text": p.text} if isinstance(p, TextPart) else {"type": "image"} for p in parts
            ]
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.tool_calls and self.role == "assistant":
            message["tool_calls"] = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        if self.role == "tool":
            message |= {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key)) is not None}
        return message


class FunctionShape(Shape):
    """A function that may be called; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def plain(self) -> dict[str, Any]:
        """As templates take it."""
        return self.model_dump(exclude_none=True, exclude={"strict"})


class Tool(Shape):
    """A tool; there are only functions."""

    type: Literal["function"]
    function: FunctionShape

    def plain(self) -> dict[str, Any]:
        """As templates take it."""
        return {"type": "function", "function": self.function.plain()}


class NamedFunction(Shape):
    """The name of a function."""

    name: str


class NamedTool(Shape):
    """This function must be called; TGI leaves out the type."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ChatRequest(SamplingFields):
    """Body of POST /v1/chat/completions.

    `truncate` is ours: "oldest_turns" drops the oldest turns whole where the chat does not fit, "refuse" answers 400; without it
    the server's setting counts.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None  # the answer goes on with the assistant's message at the end
    truncate: Literal["oldest_turns", "refuse"] | None = None

    @model_validator(mode="after")
    def _check(self) -> "ChatRequest":
        calls = False  # whether a tool message may stand here
        for message in self.messages:
            if message.pictures and message.role != "user":
                raise ValueError("只有使用者的訊息可以有圖片 (only user messages may have pictures)")
            if message.role == "tool" and not calls:
                raise ValueError("tool 訊息前面要有 tool_calls (a tool message must follow a call)")
            calls = message.role == "tool" or bool(message.tool_calls and message.role == "assistant")
        return self

    def begun_answer(self) -> tuple[list[dict[str, Any]], str]:
        """(the chat to be answered, what the answer is made to begin with)."""
        messages = [message.plain() for message in self.messages]
        if not self.continue_final_message:
            if self.add_generation_prompt is False:
                why = "add_generation_prompt 為 false 時要有 continue_final_message (needs continue_final_message)"
                raise ApiError(why, param="add_generation_prompt")
            return messages, ""
        if messages[-1]["role"] != "assistant" or len(messages) < 2 or self.add_generation_prompt:
            why = "continue_final_message 要以助理的話結尾，且 add_generation_prompt 為 false (must end with the assistant)"
            raise ApiError(why, param="continue_final_message")
        if messages[-1].get("tool_calls"):
            raise ApiError("工具呼叫不能接著寫 (a call cannot be continued)", param="continue_final_message")
        return messages[:-1], messages[-1]["content"]

    def offered(self) -> list[FunctionShape]:
        """The functions that this answer may call.

        Raises:
            ApiError: a bad or doubled name, a choice that is not offered, tools together with a format.
        """
        functions = [tool.function for tool in self.tools or ()]
        names = [function.name for function in functions]
        for name in names:
            if not NAME.fullmatch(name):
                raise ApiError("工具名稱只能有英數字、_、-、.，最多 64 個字 (bad function name)", param="tools")
        if any(too_deep(function.parameters) for function in functions):
            raise ApiError("參數的 schema 巢狀太深 (nested too deep)", param="tools")
        if len(set(names)) < len(names):
            raise ApiError("工具名稱重複 (two tools of one name)", param="tools")
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        if named is not None and named not in names:
            raise ApiError("tool_choice 不在 tools 裡 (not among the tools)", param="tool_choice")
        if self.tool_choice == "required" and not functions:
            raise ApiError("沒有工具可以呼叫 (no tools)", param="tool_choice")
        if self.tool_choice == "none" or not functions:
            return []
        if self.grammar():
            raise ApiError(
                "tools 和格式要求不能一起用 (tools and a format exclude each other)", param="response_format"
            )
        if self.continue_final_message:
            raise ApiError("continue_final_message 不能和 tools 一起用 (not together)", param="continue_final_message")
        return [function for function in functions if named in (None, function.name)] if named else functions

    @property
    def must_call(self) -> bool:
        """Whether a tool has to be called."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    def sampling(self, defaults: Sampling, vocab_size: int) -> Sampling:
        """See `SamplingFields.sampling`; with log-probabilities where asked for."""
        from dataclasses import replace

        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError("top_logprobs 要和 logprobs: true 一起用 (needs logprobs)", param="top_logprobs")
        sampling = super().sampling(defaults, vocab_size)
        limit = sampling.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return replace(sampling, max_tokens=limit, logprobs=(self.top_logprobs or 0) if self.logprobs else None)


class AnswerMessage(Shape):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Shape):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatAnswer(Shape):
    """Body of an answer in one piece; streams are `text/event-stream` of chat.completion.chunk."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    dropped_turns: int | None = None
