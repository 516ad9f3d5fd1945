"""From ids to the text a client sees: whole characters, without the template's leading space, cut before a stop string.

Streamed and whole answers are the same pieces, joined or not, so they are equal byte for byte. A stop string may
begin in one token and end in another: text that could still become one is held back until it is decided.
"""

from collections.abc import Sequence

from twllm.tokens.tokenizer import ChatTokenizer


def answer_lead(tokenizer: ChatTokenizer) -> str:
    """What the template puts between the prompt and an answer's own text, and the model therefore learned to say first.

    `' '` for taiwan-llm-v1 and -v2, `''` for chatml.
    """
    question = [{"role": "user", "content": "問"}]
    prompt = tokenizer.render(question, add_generation_prompt=True).text
    chat = tokenizer.render([*question, {"role": "assistant", "content": "答"}])
    if not chat.text.startswith(prompt) or not chat.typed:
        return ""
    return chat.text[len(prompt) : chat.typed[-1][0]]


class AnswerText:
    """Turns one answer's ids into text pieces. `stopped` becomes True at a stop string, `matched` says which; nothing follows then."""

    def __init__(
        self, tokenizer: ChatTokenizer, lead: str = "", stop: Sequence[str] = (), *, keep_stop: bool = False
    ) -> None:
        self._decoder = tokenizer.stream()
        self._lead = lead
        self._stop = [s for s in stop if s]
        self._keep = keep_stop
        self._held = ""  # not given out yet
        self._tail = ""  # given out, may be the beginning of a stop string that stays
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self.matched is not None

    def push(self, id: int) -> str:
        """The text that this id settles, '' while a character, the lead or a possible stop string is unfinished."""
        return self._settle(self._decoder.push(id), last=False)

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        return self._settle(self._decoder.finish(), last=True)

    def _settle(self, piece: str, last: bool) -> str:
        if self.stopped or not (piece or last):
            return ""
        text, self._held = self._held + piece, ""
        if self._lead:
            if not last and len(text) < len(self._lead) and self._lead.startswith(text):
                self._held = text
                return ""
            text, self._lead = text.removeprefix(self._lead), ""
        if not self._stop:
            return text
        return self._up_to_stop(text) if self._keep else self._before_stop(text, last)

    def _before_stop(self, text: str, last: bool) -> str:
        """Cut where the first stop string begins; what could become one waits."""
        found = [(at, s) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            at, self.matched = min(found, key=lambda hit: hit[0])
            return text[:at]
        keep = 0 if last else self._unsettled(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _up_to_stop(self, text: str) -> str:
        """Cut where the first stop string ends; nothing has to wait."""
        whole = self._tail + text
        found = [(at + len(s), s) for s in self._stop if (at := whole.find(s)) >= 0]
        if found:
            end, self.matched = min(found, key=lambda hit: hit[0])
            return whole[len(self._tail) : end]
        longest = max(map(len, self._stop))
        self._tail = whole[max(0, len(whole) - longest + 1) :] if longest > 1 else ""
        return text

    def _unsettled(self, text: str) -> int:
        """Length of the longest end of `text` that is the beginning of a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(s.startswith(text[-n:]) for s in self._stop)), 0)
