"""Chinese Wikipedia's variant markup read as Taiwan: `-{zh-hans:…; zh-tw:…}-`, its flags, and NoteTA's rules.

What a page says by hand counts first: marked text is taken in its zh-tw form (else zh-hant, zh-hk, zh-mo, zh) and is then
protected from conversion; rules (`-{H|…}-`, `-{A|…}-`, `{{NoteTA|1=…}}`) rewrite the other variants' words to zh-tw's all over
the page, as MediaWiki does. After that, a page written in Simplified is converted by corpus/convert.py, paragraph by
paragraph; a Traditional page is left as it is. Fallbacks: MediaWiki's ZhConverter. Not covered: the rule groups that
NoteTA names (G1=IT: they are Lua modules), rules that hold from the place where they stand on (they hold for the page).
"""

import re

from twllm.corpus.convert import convert_text

FALLBACKS = ("zh-tw", "zh-hant", "zh-hk", "zh-mo", "zh")
VARIANT = r"zh(?:-(?:hans|hant|cn|tw|hk|mo|sg|my))?"
PAIR = re.compile(rf"^\s*({VARIANT})\s*:\s*(.*?)\s*$", re.DOTALL)
ONE_WAY = re.compile(rf"^\s*(.+?)\s*=>\s*({VARIANT})\s*:\s*(.*?)\s*$", re.DOTALL)
SPLIT = re.compile(rf";(?=\s*(?:{VARIANT}\s*:|[^;:]+=>|$))")
FLAGS = re.compile(r"^\s*([A-Za-z;\s+-]*?)\s*\|(.*)$", re.DOTALL)
OPEN, CLOSE = "-{", "}-"
FIRST_HOLD = 0xF0000  # plane 15, private use: one character for each protected text
MAX_HOLDS = 65_000
SIMPLIFIED_PAGE = 0.02  # share of Simplified-only Han from which a page is Simplified: the script step's limit

Rules = dict[str, str]


class Page:
    """The rules and protected texts of one page."""

    def __init__(self) -> None:
        self.rules: Rules = {}
        self.held: list[str] = []

    def hold(self, text: str) -> str:
        """A character that stands for a text which no conversion may touch."""
        if len(self.held) == MAX_HOLDS:
            return text
        self.held.append(text)
        return chr(FIRST_HOLD + len(self.held) - 1)

    def release(self, text: str) -> str:
        """The text with what was held back in its place."""
        if not self.held:
            return text
        return HOLD.sub(lambda match: self._held(ord(match[0]) - FIRST_HOLD), text)

    def _held(self, number: int) -> str:
        return self.release(self.held[number]) if number < len(self.held) else ""

    def resolve(self, text: str) -> str:
        """The text with all variant markup read; nested markup inside out. Unclosed markup stays as it is."""
        stack: list[list[str]] = [[]]
        for piece in MARKUP.split(text):
            if piece == OPEN:
                stack.append([])
            elif piece == CLOSE and len(stack) > 1:
                inner = "".join(stack.pop())
                stack[-1].append(self._read(inner))
            else:
                stack[-1].append(piece)
        while len(stack) > 1:
            left = "".join(stack.pop())
            stack[-1] += [OPEN, left]
        return "".join(stack[0])

    def _read(self, inner: str) -> str:
        """One piece of markup: what it shows; its rules are kept."""
        flags: set[str] = set()
        if match := FLAGS.match(inner):
            flags = {flag.strip() for flag in match[1].split(";") if flag.strip()}
            if not flags or all(flag in KNOWN_FLAGS or flag.startswith("zh") for flag in flags):
                inner = match[2]
            else:
                flags = set()
        forms, one_way = parse_rule(inner)
        if "-" in flags:
            for form in (*forms.values(), *one_way):
                self.rules.pop(form, None)
            return ""
        if flags & {"A", "H", "+"}:
            self.rules |= rules_of(forms) | one_way
        if flags & {"H", "T", "+"}:
            return ""
        if "N" in flags:
            return self.hold(inner.strip())
        if forms and "R" not in flags:
            return self.hold(choose(forms))
        if one_way and "R" not in flags:
            return self.hold(next(iter(one_way.values())))
        return self.hold(inner.strip() if flags else inner)

    def note_ta(self, values: list[str]) -> None:
        """The rules of a NoteTA template's numbered parameters."""
        for value in values:
            forms, one_way = parse_rule(value)
            self.rules |= rules_of(forms) | one_way

    def to_taiwan(self, text: str) -> str:
        """Rules first, then the conversion of a page in Simplified, then what was held."""
        from twllm.corpus.steps.script import simplified_share

        if self.rules:
            words = sorted(self.rules, key=len, reverse=True)
            pattern = re.compile("|".join(map(re.escape, words)))
            text = pattern.sub(lambda match: self.hold(self.rules[match[0]]), text)
        if simplified_share(text) > SIMPLIFIED_PAGE:
            text = "\n".join(convert_text(line).text for line in text.split("\n"))
        return self.release(text)


HOLD = re.compile(f"[{chr(FIRST_HOLD)}-{chr(FIRST_HOLD + MAX_HOLDS - 1)}]")
MARKUP = re.compile(r"(-\{|\}-)")
KNOWN_FLAGS = {"A", "D", "H", "N", "R", "S", "T", "-", "+"}


def parse_rule(text: str) -> tuple[dict[str, str], Rules]:
    """(variant → form, what is rewritten one way for Taiwan) of `zh-hans:A; zh-tw:B; C=>zh-tw:D`; both empty for plain text.

    >>> parse_rule("zh-hans:软件; zh-tw:軟體;")[0]
    {'zh-hans': '软件', 'zh-tw': '軟體'}
    """
    forms: dict[str, str] = {}
    one_way: Rules = {}
    for part in SPLIT.split(text):
        if not part.strip():
            continue
        if match := ONE_WAY.match(part):
            if match[2] in FALLBACKS[:2]:
                one_way[match[1]] = match[3]
        elif match := PAIR.match(part):
            forms[match[1]] = match[2]
        else:
            return {}, {}
    return forms, one_way


def choose(forms: dict[str, str]) -> str:
    """Taiwan's form of a rule, by MediaWiki's fallbacks; where none is meant for Traditional, the first, converted."""
    for variant in FALLBACKS:
        if variant in forms:
            return forms[variant]
    return convert_text(next(iter(forms.values())), assume_simplified=True).text


def rules_of(forms: dict[str, str]) -> Rules:
    """Every other variant's word → Taiwan's."""
    if not forms:
        return {}
    target = choose(forms)
    return {form: target for form in forms.values() if form and form != target}
