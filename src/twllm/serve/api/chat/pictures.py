"""The pictures of a chat request: counted, opened or fetched, seen by the model, and put into their places.

Everything costly happens in threads and before the engine's queue. Data URLs are always taken; http(s) addresses only where the server's
settings name the host (picture_fetch.py). A refusal is a 400 that says what is wrong with which picture.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twllm.serve.errors import ApiError
from twllm.tokens.pictures import BadPicture, PictureLimits, decode_data_url, open_picture

if TYPE_CHECKING:
    from twllm.serve.api.chat.shapes import ChatRequest
    from twllm.serve.engines.torch.pictures import Seen
    from twllm.serve.operation.service import ServeSettings, Service

Messages = list[dict[str, Any]]


async def look(service: "Service", body: "ChatRequest") -> "list[Seen]":
    """What the request's model makes of its pictures, in their order.

    Raises:
        ApiError: 400, the model does not see, too many pictures, or one that cannot be used.
    """
    addresses = [url for message in body.messages for url in message.pictures]
    if not addresses:
        return []
    model, settings = service.pick(body.model), service.settings
    if not model.vision:
        what = f"{model.name} 看不懂圖片，請只送文字 (this model does not see images)"
        raise ApiError(what, param="messages", code="image_input_not_supported")
    if len(addresses) > settings.max_images:
        what = f"有 {len(addresses)} 張圖片，最多 {settings.max_images} 張 (too many images)"
        raise ApiError(what, param="messages", code="too_many_images")
    pictures = [await _open(url, number, settings) for number, url in enumerate(addresses, 1)]
    engine: Any = model.engine
    return list(await asyncio.to_thread(engine.see, pictures))


async def _open(url: str, number: int, settings: "ServeSettings") -> Any:
    limits = PictureLimits(max_bytes=settings.max_image_bytes)
    try:
        if url.startswith("data:"):
            return await asyncio.to_thread(lambda: open_picture(decode_data_url(url, limits), "data:", limits))
        if url.startswith(("http://", "https://")):
            from twllm.serve.api.chat.picture_fetch import fetch_picture

            data = await fetch_picture(url, settings.image_hosts, limits.max_bytes)
            return await asyncio.to_thread(open_picture, data, url, limits)
        raise BadPicture("圖片網址要是 data: 或 http(s) (not a data URL)", url[:60], "data:image/png;base64,…")
    except BadPicture as error:
        what = f"第 {number} 張圖片：{error.what}；{error.fix}"
        raise ApiError(what, param="messages", code="invalid_image") from error


def place(messages: Messages, seen: "Sequence[Seen]") -> Messages:
    """The messages with each picture part holding what was seen.

    Raises:
        ApiError: this route does not look at pictures.
    """
    left = iter(seen)
    found = []
    for message in messages:
        content = message["content"]
        if isinstance(content, list):
            parts = [{**part, "seen": next(left, None)} if part["type"] == "image" else part for part in content]
            if any(part["type"] == "image" and part["seen"] is None for part in parts):
                raise ApiError(
                    "這個路徑不收圖片 (no images at this route)", param="messages", code="image_input_not_supported"
                )
            message = {**message, "content": parts}
        found.append(message)
    return found


def seen_in(messages: Messages) -> "list[Seen]":
    """What was seen, in the order of these messages."""
    lists = [message["content"] for message in messages if isinstance(message["content"], list)]
    return [part["seen"] for parts in lists for part in parts if part["type"] == "image"]
