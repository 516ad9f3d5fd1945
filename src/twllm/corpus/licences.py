"""Licence texts as people write them → an SPDX-like id and what it forbids or asks, with the model that wrote the rows.

`classify` reads ids ("cc-by-nc-4.0"), names ("Creative Commons Attribution-NonCommercial 4.0"), addresses, Chinese names
（「創用CC 姓名標示-非商業性」）, "A OR B" (a choice: only what every choice asks) and "A AND B" (what either asks). Ids that
SPDX has are SPDX's (https://spdx.org/licenses/), others are LicenseRef-…; a licence we do not know is `unknown`, never
assumed free. Not legal advice and not covered: what a licence asks beyond these flags, and whether licences are compatible.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

# fmt: off
KNOWN = (  # the first pattern that fits a lower-case, NFKC text gives the id
    (r"\bcc-?\s?0\b|\bcc zero\b|publicdomain/zero", "CC0-1.0"),
    (r"\bagpl", "AGPL-3.0-only"), (r"\blgpl", "LGPL-3.0-only"), (r"\bgplv?-?\s?2", "GPL-2.0-only"), (r"\bgpl", "GPL-3.0-only"),
    (r"\bapache(?:[ -]?(?:license|licence))?(?:,)?(?:[ -]?(?:version|v))?[ -]?2|^apache$", "Apache-2.0"),
    (r"\bbsd[ -]?3|^bsd$|3-clause", "BSD-3-Clause"), (r"\bbsd[ -]?2|2-clause", "BSD-2-Clause"),
    (r"\bodc-?by\b|opendatacommons.org/licenses/by", "ODC-By-1.0"), (r"\bodbl\b", "ODbL-1.0"), (r"\bpddl\b", "PDDL-1.0"),
    (r"\bogdl\b|政府資料開放授權|open government data licen[cs]e", "OGDL-Taiwan-1.0"),
    (r"\bunlicense\b", "Unlicense"), (r"\bmpl[ -]?2", "MPL-2.0"), (r"\bgfdl\b", "GFDL-1.3-only"), (r"\bisc\b", "ISC"),
    (r"\bmit\b", "MIT"),
    (r"^llama[ -]?[234](?:\.\d)?$|llama.{0,14}(?:community|licen)", "LicenseRef-llama-community"),
    (r"openrail", "LicenseRef-OpenRAIL"), (r"^user-feedback$", "LicenseRef-user-feedback"),
    (r"public ?domain|公眾領域|公共領域|exempt from copyright|不得為著作權(?:之)?標的|著作權法第\s?9\s?條", "LicenseRef-public-domain"),
)
COPYLEFT = re.compile(r"GPL|ODbL|GFDL|MPL|OpenRAIL")
NON_COMMERCIAL = re.compile(
    r"non-?\s?commercial|非商業|非商用|(?:不得|禁止|不可)(?:作為|用於|供)?商(?:業|用)|(?:research|academic|educational)(?: (?:use|purposes?))? only"
    r"|only for (?:research|academic)|(?:僅|只)(?:供|限|能|可)(?:於|用於)?(?:學術|非營利|教學)?(?:研究|教育|學術)"
)
NO_DERIVATIVES = re.compile(r"no-?\s?deriv|禁止改作|禁止衍生|不得改作")
SHARE_ALIKE = re.compile(r"share-?\s?alike|相同方式分享")
CC = re.compile(r"\bcc[ _-]*by|creative ?commons|創用\s?cc|姓名標示|licenses/by")
CC_PART = {"nc": NON_COMMERCIAL, "nd": NO_DERIVATIVES, "sa": SHARE_ALIKE}
CC_VERSION = re.compile(r"(?<![\d.])([1-4]\.\d)(?![\d.])")
MAKERS = (  # words in a licence, a note or a model's name → whose output it is
    (r"openai|chatgpt|\bgpt-?(?:3|4|5)|text-davinci|davinci-00|\bo[134]-(?:mini|preview)|\bself-instruct\b|\bsharegpt\b", "OpenAI"),
    (r"anthropic|claude", "Anthropic"), (r"gemini|\bpalm-?2?\b|\bbard\b|google ai", "Google"), (r"deepseek", "DeepSeek"),
    (r"qwen|通義", "Alibaba"), (r"llama|vicuna|alpaca", "Meta"), (r"mi[sx]tral", "Mistral"), (r"breeze", "MediaTek"), (r"taide", "TAIDE"),
)
MADE = re.compile(
    r"generat|produced by|output|distill|synthe|written by (?:a )?model|model-written|self-instruct|sharegpt"
    r"|(?:由|以|用).{0,20}(?:產生|生成|產出|撰寫|合成)|生成|機器產生|openai|chatgpt"
)
TERMS = {"OpenAI", "Anthropic", "Google", "Meta"}  # makers whose terms restrict training other models on the output
NOTHING = re.compile(r"^(?:unknown|none|none stated|not stated|other|n/?a|null|\?+|-+|unspecified|custom|未標示|未註明|不明|無|其他)?$")
FLAGS = {  # field → what is told
    "non_commercial": "不得商用 non-commercial", "no_derivatives": "禁止改作 no derivatives",
    "share_alike": "相同方式分享 share-alike", "unknown": "授權不明 unknown",
}
# fmt: on


@dataclass(frozen=True)
class Licence:
    """What a licence text says. `generator`: whose model wrote the rows ("" for none named; "?" for an unnamed one)."""

    id: str
    non_commercial: bool = False
    no_derivatives: bool = False
    share_alike: bool = False
    unknown: bool = False
    generator: str = ""

    @property
    def has_terms(self) -> bool:
        """The maker's terms restrict what may be trained on its models' output."""
        return self.generator in TERMS

    @property
    def flags(self) -> tuple[str, ...]:
        """What a person should know before using the rows, in words."""
        told = [text for field, text in FLAGS.items() if getattr(self, field)]
        if self.generator:
            name = "" if self.generator == "?" else f"：{self.generator}"
            terms = "，受其使用條款限制 under its terms" if self.has_terms else ""
            told.append(f"模型產生 model-generated{name}{terms}")
        return tuple(told)


@lru_cache(maxsize=4096)
def classify(text: str) -> Licence:
    """The licence a text names.

    >>> classify("創用CC 姓名標示-非商業性 4.0").id
    'CC-BY-NC-4.0'
    >>> classify("MIT OR Apache-2.0").flags
    ()
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    generator = maker_of(plain) or "?" if MADE.search(plain) else ""
    if len(choices := re.split(r"\s+or\s+|\s*\|\|\s*|\s+或\s+", plain)) > 1:
        return _joined([_one(part) for part in choices], " OR ", all, generator)
    if len(parts := re.split(r"\s+and\s+(?!conditions)|\s*[;、+]\s*|\s*&\s*", plain)) > 1:
        found = [_one(part) for part in parts]
        # a list of licences, or one licence with a note behind it ("CC BY 4.0; generated by GPT-4")?
        known = [licence for licence in found if not licence.unknown]
        if generator and known:
            found = known
        return _joined(found, " AND ", any, generator)
    licence = _one(plain)
    return _joined([licence], "", any, generator or (maker_of(plain) if licence.unknown else ""))


def _joined(found: list[Licence], word: str, holds: Any, generator: str) -> Licence:
    ids = word.join(dict.fromkeys(licence.id for licence in found))
    values = {field: bool(holds(getattr(licence, field) for licence in found)) for field in FLAGS}
    return Licence(ids, **values, generator=generator)


def _one(plain: str) -> Licence:
    """The licence that a text without OR and AND names."""
    non_commercial = bool(NON_COMMERCIAL.search(plain))
    if NOTHING.match(plain):
        return Licence("", unknown=True)
    if CC.search(plain) and not re.search(KNOWN[0][0], plain):
        return _creative_commons(plain)
    for pattern, spdx in KNOWN:
        if re.search(pattern, plain):
            return Licence(spdx, non_commercial=non_commercial, share_alike=bool(COPYLEFT.search(spdx)))
    if non_commercial:
        return Licence("LicenseRef-non-commercial", non_commercial=True)
    slug = re.sub(r"[^\w.]+", "-", plain).strip("-")[:40]
    return Licence(f"LicenseRef-{slug}", unknown=True)


def _creative_commons(plain: str) -> Licence:
    """CC-BY with the parts that are in the text. "Creative Commons" alone says nothing: unknown."""
    short = re.search(r"by((?:[ _-]*(?:nc|nd|sa)\b)*)", plain.replace("_", "-"))
    parts = [
        part
        for part, words in CC_PART.items()
        if words.search(plain) or (short and re.search(rf"\b{part}\b", short[1]))
    ]
    parts = [part for part in parts if not (part == "sa" and "nd" in parts)]
    if not short and not re.search(r"attribution|姓名標示", plain):
        return Licence("LicenseRef-creative-commons", unknown=True)
    version = CC_VERSION.search(plain)
    name = "-".join(["CC-BY", *(part.upper() for part in parts), *([version[1]] if version else [])])
    return Licence(name, "nc" in parts, "nd" in parts, "sa" in parts)


def maker_of(text: str) -> str:
    """Whose model a name or a note means: "gpt-4-0613" → "OpenAI"; "" where we know none."""
    plain = text.lower()
    return next((maker for pattern, maker in MAKERS if re.search(pattern, plain)), "")


def with_generator(licence: Licence, model: str) -> Licence:
    """The licence of rows whose own fields say which model wrote them."""
    if not model or licence.generator not in ("", "?"):
        return licence
    values = {field: getattr(licence, field) for field in FLAGS}
    return Licence(licence.id, **values, generator=maker_of(model) or model)


@dataclass(frozen=True)
class DataUse:
    """One data set of a model: what it was used for, its licences and the models that wrote its rows, each with rows."""

    name: str
    use: str = ""
    licences: Mapping[str, int] = field(default_factory=dict)
    generators: Mapping[str, int] = field(default_factory=dict)

    def licence_rows(self) -> list[tuple[str, int, tuple[str, ...]]]:
        """(id, rows, flags) of each licence, most rows first; texts that mean the same licence together."""
        rows: Counter[str] = Counter()
        flags: dict[str, tuple[str, ...]] = {}
        for text, count in self.licences.items():
            licence = classify(text)
            name = licence.id or "（無 none）"
            rows[name] += count
            flags[name] = tuple(dict.fromkeys((*flags.get(name, ()), *licence.flags)))
        return [(name, count, flags[name]) for name, count in rows.most_common()]

    def generator_flags(self) -> tuple[str, ...]:
        """ "model-generated: …" for each maker of the rows' own `model` fields."""
        licences = [with_generator(Licence(""), model) for model in self.generators]
        return tuple(dict.fromkeys(licence.flags[-1] for licence in licences))

    def rows_with(self, kind: str) -> int:
        """Rows whose licence has this field set (`non_commercial`, `generator`, …); a licence of no counted rows is one.

        "" with no rows is not "unknown": nobody has looked into the rows yet.
        """
        told = sum(
            max(count, 1) for text, count in self.licences.items() if (text or count) and getattr(classify(text), kind)
        )
        return max(told, sum(self.generators.values())) if kind == "generator" else told


def notices(uses: Iterable[DataUse]) -> list[tuple[str, dict[str, int]]]:
    """(sentence in both languages, data set → rows) for what a release must say first: non-commercial, generated, unknown."""
    found = []
    uses = list(uses)
    for kind, sentence in NOTICES.items():
        sets: dict[str, int] = {}
        for use in uses:
            if rows := use.rows_with(kind):
                sets[use.name] = sets.get(use.name, 0) + rows
        if sets:
            found.append((sentence, sets))
    return found


NOTICES = {
    "non_commercial": "訓練資料含有不得商用的內容；這個模型能否商用，請先自行確認。"
    "The training data includes non-commercial rows; check before any commercial use.",
    "generator": "訓練資料含有由語言模型產生的內容，其提供者的使用條款可能有限制。"
    "The training data includes model-generated rows; their makers' terms may restrict use.",
    "no_derivatives": "訓練資料含有禁止改作的內容。The training data includes no-derivatives rows.",
    "unknown": "訓練資料含有授權不明的內容。The training data includes rows of unknown licence.",
}
