"""Pictures in a chat template: contents in parts, `<image>` where the template writes it, and a token of that name.

A content is text or a list of parts, {"type": "text", "text": …} and {"type": "image"}. The parts of a message stand in their order; a
picture has a line of its own, as in LLaVA's training data. `<image>` in somebody's text stays text: only what `render` itself puts
there becomes the token (template.py). In the checkpoint the rule stands once more at the head of its template, so that transformers' processor does the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from twllm.errors import UserError
from twllm.tokens.tokenizer import ChatTokenizer, Encoded

IMAGE = "<image>"
HEAD = """{%- set seen = namespace(messages=[], text='', last='') -%}
{%- for message in messages -%}
    {%- if message['content'] is string or message['content'] is none or message['content'] is undefined -%}
        {%- set seen.messages = seen.messages + [message] -%}
    {%- else -%}
        {%- set seen.text = '' -%}{%- set seen.last = '' -%}
        {%- for part in message['content'] -%}
            {%- if seen.last and (part['type'] == 'image' or seen.last == 'image') -%}{%- set seen.text = seen.text + '\\n' -%}{%- endif -%}
            {%- set seen.text = seen.text + ('<image>' if part['type'] == 'image' else part['text']) -%}
            {%- set seen.last = part['type'] -%}
        {%- endfor -%}
        {%- set seen.messages = seen.messages + [dict(message, content=seen.text)] -%}
    {%- endif -%}
{%- endfor -%}
{%- set messages = seen.messages -%}
"""


def seeing_tokenizer(tokenizer: ChatTokenizer) -> ChatTokenizer:
    """A copy with `<image>` in its vocabulary and a template that takes parts."""
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    source = tokenizer.template if tokenizer.template.startswith(HEAD) else HEAD + tokenizer.template
    return ChatTokenizer(backend, source, tokenizer.bos, tokenizer.eos, tokenizer.pad)


def count_pictures(messages: Sequence[Mapping[str, Any]]) -> int:
    """Picture parts in a chat."""
    return sum(
        part["type"] == "image"
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    )


def expand(encoded: Encoded, image_id: int, blocks: Sequence[Sequence[int]]) -> Encoded:
    """Ids with the n-th `<image>` replaced by `blocks[n]`; never learned.

    >>> expand(Encoded([1, 9, 2], [False, False, True]), 9, [[9, 9]])
    Encoded(ids=[1, 9, 9, 2], mask=[False, False, False, True])

    Raises:
        UserError: another number of places than of pictures.
    """
    places = encoded.ids.count(image_id)
    if places != len(blocks):
        what = f"有 {len(blocks)} 張圖片，對話裡卻有 {places} 個位置 (pictures and places differ)"
        raise UserError(what, "messages", "檢查對話範本是否寫出每則訊息")
    ids: list[int] = []
    mask: list[bool] = []
    left = iter(blocks)
    for id, learned in zip(encoded.ids, encoded.mask, strict=True):
        block = next(left) if id == image_id else [id]
        ids += block
        mask += [learned and id != image_id] * len(block)
    return Encoded(ids, mask)
