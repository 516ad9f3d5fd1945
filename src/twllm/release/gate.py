"""May the weights go out under this licence? The reasons why not, before a file is written.

What the base, the data and their makers ask is compared with the licence of the release. Two kinds of reasons: some forbid the licence (a
non-commercial base or data under a commercial licence, no-derivatives data, another licence than the base's own terms keep) and no
option lifts them; others want a person to have looked (`accept`: model-generated rows under their maker's terms, an unknown licence), and what
was accepted stands on the card. `internal` is no licence: nothing is given to anyone, nothing is refused.
Not legal advice. Not covered: whether share-alike data makes the weights share-alike (told on the card, not refused).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from twllm.corpus.licences import DataUse, Licence, classify, with_generator
from twllm.errors import UserError

INTERNAL = {"internal", "none", "內部", "內部使用", "不散布"}
ACCEPTABLE = {"generated": "模型產生的資料，其提供者的條款", "unknown": "授權不明的底模或資料"}
Kind = Literal["base", "non_commercial", "no_derivatives", "generated", "unknown"]


@dataclass(frozen=True)
class Reason:
    """One thing in the way: its kind, which `accept` may name, and a sentence in both languages."""

    kind: Kind
    text: str


def reasons(licence: str, base: str | None, uses: Iterable[DataUse]) -> list[Reason]:
    """Why the weights may not be released under `licence`. `base`: the base model's licence, None from scratch, "" not known."""
    if licence.strip().lower() in INTERNAL:
        return []
    release = classify(licence)
    found = [*_of_base(release, base)] if base is not None else []
    for use in uses:
        found += _of_data(release, use)
    if release.unknown and release.id:
        found.append(Reason("unknown", f"不認得要用的授權 {licence!r} (the release's licence is not known)"))
    return found


def require_licence(
    licence: str,
    base: str | None,
    uses: Iterable[DataUse],
    accept: Collection[str] = (),
    where: object = "release.license",
    seen: Collection[str] = (),
) -> list[Reason]:
    """The reasons that were accepted; `seen`: texts of those that were at an earlier release of the same folder.

    Raises:
        UserError: a licence that the inputs do not allow, with every reason; a word that `accept` does not know.
    """
    if odd := sorted(set(accept) - set(ACCEPTABLE)):
        raise UserError("不能這樣接受 (cannot be accepted)", "、".join(odd), f"可以的有：{'、'.join(ACCEPTABLE)}")
    found = reasons(licence, base, uses)
    refused = [r for r in found if r.kind not in accept and not (r.kind in ACCEPTABLE and r.text in seen)]
    if not refused:
        return found
    told = "；".join(dict.fromkeys(reason.text for reason in refused))
    forbid = any(reason.kind not in ACCEPTABLE for reason in refused)
    words = " ".join(f"--accept {kind}" for kind in ACCEPTABLE if any(reason.kind == kind for reason in refused))
    fix = "換一個授權（例如 cc-by-nc-4.0，或不對外給的 internal），或拿掉這些資料重新訓練"
    fix = fix if forbid else f"看過條款、確定可以，就加上 {words}（配方：release.accept）；或 license = internal"
    raise UserError(f"不能用 {licence} 釋出 (this licence is not allowed)：{told}", where, fix)


def _of_base(release: Licence, text: str) -> Iterable[Reason]:
    base = classify(text)
    if base.unknown:
        name = f"是 {text!r}，不認得" if text else "沒有寫"
        yield Reason("unknown", f"底模的授權{name} (base licence unknown)；用 --base-license 說明")
    elif base.non_commercial and not release.non_commercial:
        yield Reason("non_commercial", f"底模是 {base.id}，不得商用 (non-commercial base)")
    elif base.no_derivatives:
        yield Reason("no_derivatives", f"底模是 {base.id}，禁止改作 (no derivatives of the base)")
    elif (base.share_alike or base.id.startswith("LicenseRef-llama")) and release.id != base.id:
        yield Reason("base", f"底模是 {base.id}，要用同樣的授權釋出 (the base's licence has to be kept)")


def _of_data(release: Licence, use: DataUse) -> Iterable[Reason]:
    for text, rows in use.licences.items():
        licence = classify(text)
        told = f"{use.name}（{use.use} {rows:,} 筆 rows，{licence.id or '沒寫授權 none'}）"
        if licence.non_commercial and not release.non_commercial:
            yield Reason("non_commercial", f"{told}不得商用 (non-commercial data)")
        if licence.no_derivatives:
            yield Reason("no_derivatives", f"{told}禁止改作 (no-derivatives data)")
        if licence.unknown and (text or rows):
            yield Reason("unknown", f"{told}授權不明 (unknown licence)")
        if licence.has_terms:
            yield Reason("generated", f"{told}是 {licence.generator} 的模型寫的，受其使用條款限制 (model-generated)")
    for model, rows in use.generators.items():
        licence = with_generator(Licence(""), model)
        if licence.has_terms:
            told = f"{use.name} 有 {rows:,} 筆由 {licence.generator} 的 {model} 寫的"
            yield Reason("generated", f"{told}，受其使用條款限制 (model-generated, under its terms)")
