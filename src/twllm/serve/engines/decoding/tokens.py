"""Single tokens as text, for log-probabilities: exact bytes of a token, a unique name for it, where it begins in a text.

`decode([id])` will not do: it drops leading spaces, and every token that is part of a Chinese character becomes the same
U+FFFD, so that a dictionary of candidates by text loses all but one of them. Such a token is named `bytes:\\xe5\\x8f`, as
OpenAI's completions API named them.
Not covered: tokenizers whose decoder is neither byte-level, nor sentencepiece-like, nor plain pieces (WordPiece's ##).
"""

import codecs
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from twllm.tokens.template import clean_text
from twllm.tokens.tokenizer import ChatTokenizer

BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a sentencepiece byte token


def _byte_letters() -> dict[str, int]:
    """The letters with which byte-level BPE (GPT-2's) writes bytes: printable Latin-1 as itself, the rest from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {**{chr(byte): byte for byte in shown}, **{chr(256 + i): byte for i, byte in enumerate(hidden)}}


LETTERS = _byte_letters()


def encode_raw(tokenizer: ChatTokenizer, text: str, *, bos: bool = True) -> list[int]:
    """Ids of a raw prompt. Control tokens written in it count: whoever sends a raw prompt writes the template himself.

    `bos`: the begin token is put first where the tokenizer has one and the text does not already begin with it.
    """
    ids: list[int] = tokenizer.backend.encode(clean_text(text), add_special_tokens=False).ids
    begin = tokenizer.bos_id
    return [begin, *ids] if bos and begin is not None and ids[:1] != [begin] else ids


class TokenText:
    """Tokens of one tokenizer as bytes and names."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {id: token.content for id, token in tokenizer.backend.get_added_tokens_decoder().items()}
        decoder = str(tokenizer.backend.decoder)
        self._byte_level, self._pieces = "ByteLevel" in decoder, "▁" in decoder
        self.bytes_of = lru_cache(maxsize=1 << 16)(self._bytes_of)
        self.name = lru_cache(maxsize=1 << 16)(self._name)

    def _bytes_of(self, id: int) -> bytes:
        """What the token writes; a control token writes its name, an id without token nothing."""
        if id in self._added:
            return self._added[id].encode()
        piece = self._tokenizer.backend.id_to_token(id) or ""
        if self._byte_level:
            return bytes(LETTERS[letter] for letter in piece if letter in LETTERS)
        if byte := BYTE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return (piece.replace("▁", " ") if self._pieces else piece).encode()

    def _name(self, id: int) -> str:
        """The token's text where it is whole characters, else `bytes:` and its bytes, or `token_id:7` where it has none."""
        raw = self.bytes_of(id)
        try:
            return raw.decode() or f"token_id:{id}"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def names(self, scored: Iterable[tuple[int, float]]) -> dict[str, float]:
        """Log-probabilities by name; of two tokens with one name the better, which comes first, is kept."""
        found: dict[str, float] = {}
        for id, logprob in scored:
            found.setdefault(self.name(id), logprob)
        return found

    def offsets(self, ids: Sequence[int], text: str) -> list[int]:
        """For each token, the number of characters of `text` before it; one inside a character has that character's.

        A control token takes up room only where the text has it (`decode` leaves them out), and so does the space that
        sentencepiece puts before a first word.
        """
        offsets = Offsets(self)
        return [offsets.next(id, text) for id in ids]

    def is_control(self, id: int) -> bool:
        """Whether `decode` leaves the token out."""
        return id in self._tokenizer.control_ids


class Offsets:
    """`TokenText.offsets` for tokens that come one by one."""

    def __init__(self, texts: TokenText) -> None:
        self._texts = texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._position = 0

    def next(self, id: int, text: str) -> int:
        """Where the next token begins in `text`, of which at least this token's part has to be known."""
        start = min(self._position, len(text))
        raw = self._texts.bytes_of(id)
        if self._texts.is_control(id) and not text.startswith(raw.decode(), self._position):
            return start
        piece = self._decoder.decode(raw)
        extra = piece.startswith(" ") and not text.startswith(" ", self._position)
        self._position += len(piece) - extra
        return start
