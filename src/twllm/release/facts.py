"""What a model card tells, gathered from a finished run or from a folder, and kept in `manifest.json` so that later exports tell it, too.

A folder that twllm released carries all of it (`metrics.card`). Of any other folder only its own card's head and config are known; what its
data were is then said by the person who exports it, or the card says that it is not known.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from twllm import data
from twllm.artifact import read_manifest
from twllm.config import Config
from twllm.corpus.licences import DataUse
from twllm.errors import UserError
from twllm.model.hub import fetch
from twllm.recipe import Recipe
from twllm.tokens.contract import default_system, trained_fingerprint
from twllm.tokens.tokenizer import ChatTokenizer

DRAWN, DRAWN_LICENCE = "twllm:draw", "Apache-2.0"  # what draw/build.py makes
KEY = "card"  # in the manifest's metrics
BEFORE = "底模 base："  # of data that the base was trained on


@dataclass(frozen=True)
class ModelFacts:
    """Everything a card is written from. `base` "" and `base_license` None: trained from scratch; `base_license` "": not known."""

    name: str
    license: str
    parameters: int
    base: str = ""
    base_license: str | None = None
    description: str = ""
    template: str = ""
    template_fingerprint: str = ""
    system: str = ""
    example: str = ""  # a prompt as the template writes it
    context: int | None = None
    uses: tuple[DataUse, ...] = ()
    uses_known: bool = True
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: tuple[tuple[str, str], ...] = ()  # phase → its numbers
    accepted: tuple[str, ...] = ()  # reasons of the licence gate that a person accepted
    losses: tuple[Mapping[str, Any], ...] = ()  # of quantisation: export_losses.py
    original: str = ""  # the card of a folder that twllm did not release

    def to_row(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ModelFacts":
        """What `to_row` wrote."""
        known = {key: value for key, value in row.items() if key in cls.__dataclass_fields__}
        known["uses"] = tuple(DataUse(**use) for use in row.get("uses", ()))
        known["settings"] = tuple((name, text) for name, text in row.get("settings", ()))
        for key in ("accepted", "losses"):
            known[key] = tuple(row.get(key, ()))
        return cls(**known)


def facts_of_run(
    recipe: Recipe, model: Path, scores: Mapping[str, Mapping[str, Any]], folders: Sequence[Path] = ()
) -> ModelFacts:
    """The facts of a recipe's model; `folders`: the finished corpus and token stages, whose manifests count the rows of each licence."""
    metrics = (read_manifest(model) or {}).get("metrics") or {}
    base, told = recipe.base.model or "", recipe.release.base_license
    before = facts_of_folder(Path(base)) if base and Path(base).is_dir() else None
    uses = [replace(use, use=BEFORE + use.use.removeprefix(BEFORE)) for use in (before.uses if before else ())]
    return ModelFacts(
        name=recipe.name,
        license=recipe.release.license,
        parameters=metrics.get("parameters") or count_parameters(model),
        base=before.name if before else shown(base),
        base_license=(told or card_licence(base, recipe.base.revision)) if base else None,
        description=recipe.release.description,
        template=recipe.template.name,
        uses=(*uses, *data_uses(recipe, [read_manifest(folder) or {} for folder in folders])),
        scores=scores,
        settings=tuple(_settings(recipe)),
        **of_folder(model),
    )


def facts_of_folder(folder: Path, name: str = "") -> ModelFacts:
    """The facts of any checkpoint folder: what its release wrote down, else what its card and config say."""
    kept = ((read_manifest(folder) or {}).get("metrics") or {}).get(KEY)
    if isinstance(kept, dict):
        return ModelFacts.from_row(kept | {"losses": ()} | ({"name": name} if name else {}))
    head = card_head(folder)
    base = head.get("base_model") or ""
    return ModelFacts(
        name=name or folder.resolve().name,
        license=licence_in(head),
        parameters=count_parameters(folder),
        base="、".join(map(str, base)) if isinstance(base, list) else str(base),
        base_license=licence_in(head),  # what this folder may be given on under is what its own card says
        uses_known=False,
        original=card_body(folder),
        **of_folder(folder),
    )


def of_folder(folder: Path) -> dict[str, Any]:
    """Template, system text, context."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokenizer = ChatTokenizer.load(folder)
    except (OSError, ValueError, UserError):
        return {}
    context = (config.get("text_config") or config).get("max_position_embeddings")
    found: dict[str, Any] = {"context": context}
    if tokenizer.template:
        turn = [{"role": "user", "content": "臺灣最高的山是哪一座？"}]
        found["system"] = default_system(tokenizer)
        found["template_fingerprint"] = trained_fingerprint(folder) or tokenizer.template_fingerprint
        found["example"] = tokenizer.render(turn, add_generation_prompt=True).text
    return found


def _settings(recipe: Recipe) -> list[tuple[str, str]]:
    rows = []
    seeing = [("align", recipe.vision.align), ("instruct", recipe.vision.instruct)] if recipe.vision else []
    named = [("pretrain", recipe.pretrain), ("sft", recipe.sft), ("feedback", recipe.feedback), *seeing]
    for name, phase in named:
        if phase.enabled:
            rows.append((name, phase_settings(phase)))
    return rows


def phase_settings(phase: Config) -> str:
    """A training phase's numbers, for a reader."""
    told = phase.model_dump(
        mode="json", include={"method", "lr", "epochs", "max_tokens", "batch_tokens", "context", "seed"}
    )
    return "、".join(f"{key} {value}" for key, value in told.items() if value is not None)


def data_uses(recipe: Recipe, manifests: Sequence[Mapping[str, Any]] = ()) -> list[DataUse]:
    """What every data set of the recipe was used for, with its licences: rows as the stages counted them, 0 where none did."""
    metrics = {str(manifest.get("stage")): manifest.get("metrics") or {} for manifest in manifests}
    corpus = metrics.get("corpus", {})
    uses = []
    if recipe.corpus.sources:
        counted = corpus.get("licenses") or {source.license: 0 for source in recipe.corpus.sources}
        names = "、".join(shown(source.name or source.path) for source in recipe.corpus.sources)
        uses.append(DataUse(names, "預訓練 pretrain", counted))
    for phase, config in (("sft", recipe.sft), ("feedback", recipe.feedback)):
        if not config.enabled:
            continue
        for number, dataset in enumerate(config.datasets):
            facts = metrics.get(f"tokens-{phase}", {}).get(f"{number:03}", {})
            counted = facts.get("licenses") or {dataset.license: 0}
            uses.append(DataUse(shown(dataset.path), phase, counted, facts.get("generators") or {}))
    return uses + _picture_uses(recipe, metrics)


def _picture_uses(recipe: Recipe, metrics: Mapping[str, Mapping[str, Any]]) -> list[DataUse]:
    """What [vision] was made of: the encoder, and the pictures with their conversations."""
    vision = recipe.vision
    if vision is None:
        return []
    uses = []
    if vision.encoder:
        licence = vision.encoder_license or card_licence(vision.encoder, vision.revision)
        uses.append(DataUse(shown(vision.encoder), "圖片編碼器 encoder", {licence: 0}))
    for name, phase in (("align", vision.align), ("instruct", vision.instruct)):
        facts = metrics.get(name, {}).get("datasets") or {}
        drawn = [(DRAWN, DRAWN_LICENCE)] if vision.draw else []
        named = [*drawn, *((shown(d.path), d.license) for d in phase.datasets)]
        for number, (path, licence) in enumerate(named if phase.enabled else ()):
            found = facts.get(f"{number:03}", {})
            uses.append(DataUse(path, name, found.get("licenses") or {licence: 0}, found.get("generators") or {}))
    return uses


def shown(name: str) -> str:
    """A data set's or a model's name on the card: no local folders."""
    hub = name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).exists()
    return name if name.startswith(data.PREFIX) or hub else Path(name).name


def card_licence(model: str, revision: str | None = None) -> str:
    """The licence that a model's own card names, "" where it does not or cannot be read."""
    try:
        return licence_in(card_head(fetch(model, revision, ["README.md"])))
    except UserError:
        return ""


def card_head(folder: Path) -> dict[str, Any]:
    """The YAML head of README.md; empty where there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") and text.count("---") > 1 else {}
    except (OSError, yaml.YAMLError):
        return {}
    return head if isinstance(head, dict) else {}


def card_body(folder: Path) -> str:
    """README.md without its head."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return (text.split("---", 2)[2] if text.startswith("---") and text.count("---") > 1 else text).strip()


def licence_in(head: Mapping[str, Any]) -> str:
    """`license`, or where that is "other", its name."""
    licence = head.get("license") or ""
    licence = " AND ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
    return str(head.get("license_name") or licence) if licence in ("other", "") else licence


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors headers."""
    from math import prod

    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total
