"""What another server said, as our events: text cut, led and stopped here as for every engine, whatever the server does itself.

Stop strings are looked for here and never sent: servers differ in whether they keep, trim or find them (TGI keeps one and sees it only
at the end of a token). Where the server tells token ids, the text is made from them. Where it only sends text, the text is passed on to
the letter and `TokenEvent.id` is what our tokenizer makes of the piece: the same text, not surely the tokens that the model drew.
"""

from typing import NamedTuple

from twllm.serve.engines.decoding.text import AnswerText
from twllm.serve.engines.interface import Alternatives, Sampling, TokenEvent
from twllm.tokens.tokenizer import ChatTokenizer

Drawn = tuple[float, Alternatives]  # log-probability of an id, and of the best ids


class Piece(NamedTuple):
    """Part of a stream: ids where they are known, else text; `drawn` has one entry per id or none; `finish`: "stop" or "length"."""

    ids: tuple[int, ...] = ()
    text: str = ""
    drawn: tuple[Drawn, ...] = ()
    finish: str | None = None


class PieceText(AnswerText):
    """`AnswerText` for text that comes without ids."""

    def push_text(self, piece: str) -> str:
        """The text that this piece settles."""
        return self._settle(piece, last=False)


class AnswerReader:
    """One answer. `ended` once an event carried a finish_reason; nothing is given out after it."""

    def __init__(self, tokenizer: ChatTokenizer, lead: str, sampling: Sampling, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._text = PieceText(tokenizer, lead, sampling.stop, keep_stop=sampling.keep_stop)
        self._ends = frozenset() if sampling.ignore_eos else end_ids
        self._end = tokenizer.eos_id
        self.count = 0  # tokens
        self.ended = False

    def push(self, piece: Piece) -> list[TokenEvent]:
        """The events of a piece, none where it settles nothing."""
        known = bool(piece.ids)
        ids = list(piece.ids) if known else self._tokenizer.encode(piece.text)
        if piece.drawn and not known:
            ids = ids[: len(piece.drawn)]  # as many events as the server says there were tokens
        events: list[TokenEvent] = []
        for at, id in enumerate(ids):
            last = at == len(ids) - 1
            logprob, top = piece.drawn[at] if at < len(piece.drawn) else (None, ())
            text, reason = self._settle(
                id if known else None, piece.text if last else "", piece.finish if last else None
            )
            events.append(TokenEvent(id, text, reason, logprob, top, self._text.matched))
            self.count += 1
            if reason:
                self.ended = True
                return events
        if piece.finish and not ids:  # said after the last token: the end token's event carries it
            events.append(
                TokenEvent(self._end, self._text.finish(), self._reason(piece.finish), matched=self._text.matched)
            )
            self.ended = True
        return events

    def _settle(self, id: int | None, text: str, finish: str | None) -> tuple[str, str | None]:
        if id is not None and id in self._ends:
            return self._text.finish(), "stop"
        said = self._text.push(id) if id is not None else self._text.push_text(text)
        if self._text.stopped:
            return said, "stop"
        if finish:
            said += self._text.finish()
            return said, self._reason(finish)
        return said, None

    def _reason(self, finish: str) -> str:
        return "stop" if self._text.stopped else finish
