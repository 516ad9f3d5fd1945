"""From a checkpoint to what others open: a Hugging Face folder (fp32 or bf16), GGUF, Ollama, int8, GPTQ, AWQ, each with its card; or nothing.

Everything that can be refused is refused before a file is written: licence, template, shape. `hf` lies at the top of the folder and the
others in folders of their names; asked for alone, a format has the folder to itself. Used by `twllm export` and by a recipe's release stage.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twllm.artifact import copy_files, hash_path, write_folder, write_manifest
from twllm.corpus.licences import DataUse
from twllm.errors import UserError, did_you_mean
from twllm.export.losses import QUESTIONS, loss_row, measure_folder, measure_gguf, try_measuring
from twllm.model.hub import fetch
from twllm.recipe import Recipe
from twllm.release.bf16 import write_bf16
from twllm.release.card import model_card
from twllm.release.facts import (
    KEY,
    ModelFacts,
    card_head,
    card_licence,
    data_uses,
    facts_of_folder,
    facts_of_run,
    licence_in,
    shown,
)
from twllm.release.gate import require_licence
from twllm.tokens.contract import require_trained_template
from twllm.tokens.tokenizer import ChatTokenizer

FORMATS = ("hf", "bf16", "gguf", "ollama", "int8", "gptq", "awq")
QUANTISED = ("int8", "gptq", "awq")
EXACT = ("f32", "f16", "bf16", "q8_0")  # GGUF kinds that need no llama.cpp
FILES = ("*.safetensors", "*.json", "*.jinja", "*.model")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Export:
    """What to write and under which terms. "" where the folder's own word counts."""

    formats: tuple[str, ...] = ("hf",)
    gguf_types: tuple[str, ...] = ("f16",)
    name: str = ""
    license: str = ""
    base: str = ""  # of an adapter
    base_license: str = ""
    data: tuple[DataUse, ...] = ()  # what a folder that does not say was trained on
    accept: tuple[str, ...] = ()
    context: int | None = None  # num_ctx of Ollama
    questions: int = QUESTIONS  # asked to tell what quantisation cost; 0: bits only
    scores: bool = True
    allow_template_mismatch: bool = False


def export(model: str, out: Path, asked: Export, tell: Tell = lambda text: None) -> ModelFacts:
    """Write the formats into the folder `out`, whole or not at all.

    Raises:
        UserError: a licence that the inputs do not allow, another template than the trained one, a model or vocabulary that a
            format cannot hold, a library that is missing.
    """
    from twllm.release.merge import is_adapter, merge_adapter

    check_formats(asked.formats, asked.gguf_types)
    source = fetch(model)
    with ExitStack() as stack:
        if is_adapter(source):
            base, base_name = _base_of(source, asked.base)
            merged = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_beside(out), prefix=".merge-")))
            facts = _permitted(_facts_of_adapter(source, base, base_name, asked), asked)
            tell("合併轉接器 (merging the adapter)")
            merge_adapter(source, base, merged)
            facts = replace(_read_merged(facts, merged), license=facts.license)
            inputs = {"adapter": hash_path(source), "base": hash_path(base)}
            folder = merged
        else:
            if asked.base:
                raise UserError("--base 只給轉接器用 (only for adapters)", model, "拿掉 --base")
            facts, inputs, folder = _permitted(_facts(source, asked), asked), {"model": hash_path(source)}, source
        _check_template(folder, asked)
        with write_folder(out) as partial:
            facts = write_formats(folder, partial, asked, facts, tell)
            config = {"formats": asked.formats, "gguf_types": asked.gguf_types, "license": facts.license}
            told = {
                "parameters": facts.parameters,
                "template_fingerprint": facts.template_fingerprint,
                KEY: facts.to_row(),
            }
            write_manifest(partial, "export", config, inputs, metrics=told)
    return facts


def write_release(
    recipe: Recipe, model: Path, evaluation: Path, out: Path, folders: Sequence[Path] = ()
) -> dict[str, Any]:
    """A recipe's release: gates, licence, then every format of `[release]` into `out`; gives what goes into the manifest.

    Raises:
        UserError: a score is below the recipe's gate (`evaluate.gates`), or what `export` refuses; nothing is released.
    """
    result = json.loads((evaluation / "result.json").read_text(encoding="utf-8"))
    scores = {name: block for name, block in result.items() if isinstance(block, dict) and "n" in block}
    check_gates(recipe.evaluate.gates, scores)
    release = recipe.release
    check_formats(release.formats, release.gguf_types)
    told = {name: {key: block[key] for key in ("score", "n") if key in block} for name, block in scores.items()}
    asked = Export(
        formats=("hf", *(f for f in release.formats if f != "hf")), gguf_types=release.gguf_types, accept=release.accept
    )
    facts = _permitted(facts_of_run(recipe, model, told, folders), asked, release.license)
    _check_template(model, asked)
    facts = write_formats(model, out, asked, facts)
    metrics = json.loads((model / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    return {key: metrics[key] for key in ("parameters", "weights_fingerprint", "template_fingerprint")} | {
        KEY: facts.to_row()
    }


def check_release(recipe: Recipe) -> None:
    """What can be known about a recipe's release before it runs: formats, and the licences that the recipe itself names.

    Raises:
        UserError: an unknown kind of file, or a licence that the named base and data do not allow.
    """
    release, base = recipe.release, recipe.base.model
    check_formats(release.formats, release.gguf_types)
    known = release.base_license or (card_licence(base) if base and Path(base).is_dir() else "")
    uses = [use for use in data_uses(recipe) if any(use.licences)]
    require_licence(release.license, known or None, uses, release.accept)


def check_gates(gates: Mapping[str, float], scores: Mapping[str, Any]) -> None:
    """Refuse a release whose scores are below the gates."""
    for suite, least in gates.items():
        score = scores.get(suite, {}).get("score")
        if score is None or score < least:
            raise UserError(
                f"{suite} 得分 {score} 未達門檻 {least} (release gate)",
                f"evaluate.gates.{suite}",
                "改進模型，或調整配方裡的門檻",
            )


def check_formats(formats: Sequence[str], gguf_types: Sequence[str]) -> None:
    """Refuse a format or a kind of GGUF that there is not."""
    from twllm.release.kquants import KINDS

    for name in formats:
        if name not in FORMATS:
            raise UserError("沒有這種格式 (unknown format)", name, did_you_mean(name, FORMATS))
    for kind in gguf_types:
        if kind.lower() not in (*EXACT, *KINDS):
            raise UserError("沒有這種 GGUF 型別 (unknown type)", kind, did_you_mean(kind.lower(), (*EXACT, *KINDS)))


# -- what is known about it ---------------------------------------------------------------------------------------


def _facts(folder: Path, asked: Export) -> ModelFacts:
    facts = facts_of_folder(folder, asked.name)
    more: dict[str, Any] = {"uses": (*facts.uses, *asked.data)}
    if asked.base_license:
        more["base_license"] = asked.base_license
    return replace(facts, **more)


def _facts_of_adapter(adapter: Path, base: Path, base_name: str, asked: Export) -> ModelFacts:
    """Of the merged model: the base's facts, the adapter's card where it has one."""
    facts = facts_of_folder(base)
    own = licence_in(card_head(adapter))
    told = asked.base_license or facts.license
    both = f"{told} AND {own}" if own and told and own != told else told or own
    return replace(
        facts, name=asked.name or adapter.resolve().name, base=shown(base_name), base_license=both, license=own or facts.license,
        uses=(*facts.uses, *asked.data), uses_known=False, scores={}, settings=(), losses=(),
    )  # fmt: skip


def _read_merged(facts: ModelFacts, merged: Path) -> ModelFacts:
    """Template and context as the merged folder has them: the adapter's tokenizer may bring its own template."""
    found = facts_of_folder(merged)
    keys = ("parameters", "template_fingerprint", "system", "example", "context")
    same = facts.template if found.template_fingerprint == facts.template_fingerprint else ""
    return replace(facts, template=same, **{key: getattr(found, key) for key in keys})


def _base_of(adapter: Path, given: str) -> tuple[Path, str]:
    from twllm.release.merge import read_adapter_config

    named = given or str(read_adapter_config(adapter).get("base_model_name_or_path") or "")
    if not named:
        raise UserError("轉接器沒說底模是誰 (no base named)", adapter, "用 --base 給底模資料夾或 hub 名稱")
    try:
        return fetch(named), named
    except UserError as error:
        raise UserError(
            f"找不到轉接器的底模 (its base is not there): {error.what}", named, "用 --base 給底模資料夾"
        ) from error


def _permitted(facts: ModelFacts, asked: Export, licence: str = "") -> ModelFacts:
    """The facts with the licence of the release, once the gate has let it pass."""
    licence = licence or asked.license or facts.license
    if not licence:
        raise UserError(
            "沒有說用什麼授權釋出 (no licence)", facts.name, "--license，例如 apache-2.0；只在內部用就寫 internal"
        )
    base = facts.base_license
    seen = facts.accepted if licence == facts.license else ()
    accepted = require_licence(licence, base, facts.uses, asked.accept, facts.name, seen)
    return replace(facts, license=licence, accepted=tuple(reason.text for reason in accepted))


def _check_template(folder: Path, asked: Export) -> None:
    tokenizer = ChatTokenizer.load(folder)
    if tokenizer.template:
        require_trained_template(folder, tokenizer, allow_mismatch=asked.allow_template_mismatch)
    elif "ollama" in asked.formats:
        raise UserError(
            "沒有對話範本，Ollama 不知道怎麼對話 (no chat template)", folder, "基礎模型要先微調；或用 --format gguf"
        )


# -- writing ------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """The original's numbers, taken once and only where something is quantised."""

    folder: Path
    asked: Export
    found: dict[str, Any] | None = field(default=None)

    def before(self) -> dict[str, Any]:
        """Of the original."""
        if self.found is None:
            self.found = self.of(self.folder)
        return self.found

    def of(self, folder: Path) -> dict[str, Any]:
        """Of a folder."""
        if not self.asked.scores:
            return {}
        with tempfile.TemporaryDirectory() as work:
            return try_measuring(measure_folder, folder, Path(work), self.asked.questions)


def write_formats(
    folder: Path, out: Path, asked: Export, facts: ModelFacts, tell: Tell = lambda text: None
) -> ModelFacts:
    """Fill `out`, which exists; gives the facts with what quantisation cost."""
    alone = len(asked.formats) == 1
    measured = Measured(folder, asked)
    losses: list[dict[str, Any]] = []
    for kind in [*asked.formats]:
        tell(f"寫 {kind} (writing)")
        target = out if alone or kind == "hf" else out / kind
        target.mkdir(exist_ok=True)
        if kind == "hf":
            copy_checkpoint(folder, target)
        elif kind == "bf16":
            write_bf16(folder, target)
        elif kind in QUANTISED:
            losses.append(_quantised(kind, folder, target, measured))
        else:
            rows = _gguf(kind, folder, target, out, asked, facts, measured)
            losses += [row for row in rows if row["format"] not in {loss["format"] for loss in losses}]
    facts = replace(facts, losses=tuple(losses))
    for kind in asked.formats:
        target = out if alone or kind == "hf" else out / kind
        names = [file.name for file in sorted(target.glob("*.gguf"))]
        (target / "README.md").write_text(model_card(facts, kind, names), encoding="utf-8")
    return facts


def copy_checkpoint(folder: Path, out: Path) -> None:
    """The files that make a Hugging Face folder."""
    copy_files(folder, out, FILES)


def _quantised(kind: str, folder: Path, target: Path, measured: Measured) -> dict[str, Any]:
    from twllm.release.quantise import quantise

    facts = quantise(folder, target, kind)  # type: ignore[arg-type]
    row = loss_row(kind, measured.before(), measured.of(target), (_size(folder), _size(target)))
    return row | {key: facts[key] for key in ("library", "bits", "group_size", "calibration_rows") if key in facts}


def _gguf(
    kind: str, folder: Path, target: Path, out: Path, asked: Export, facts: ModelFacts, measured: Measured
) -> list[dict[str, Any]]:
    """GGUF files; for Ollama the first kind, and the Modelfile that names it."""
    shared = kind == "ollama" and "gguf" in asked.formats
    kinds = [name.lower() for name in (asked.gguf_types[:1] if kind == "ollama" else asked.gguf_types)]
    place = out / "gguf" if shared else target
    place.mkdir(exist_ok=True)
    rows = []
    for type_ in kinds:
        file = place / f"{Path(facts.name).name}-{type_}.gguf"
        if not file.is_file():
            write_gguf_kind(folder, file, type_, facts, asked.allow_template_mismatch)
            if type_ not in ("f32", "f16", "bf16"):
                after = try_measuring(measure_gguf, file, folder) if asked.scores else {}
                rows.append(
                    loss_row(
                        f"gguf {type_}", measured.before() if after else {}, after, (_size(folder), file.stat().st_size)
                    )
                )
    if kind == "ollama":
        first = f"{Path(facts.name).name}-{kinds[0]}.gguf"
        _write_modelfile(folder, target, f"../gguf/{first}" if shared else f"./{first}", asked, facts)
    return rows


def write_gguf_kind(
    folder: Path, file: Path, kind: str, facts: ModelFacts, allow_template_mismatch: bool = False
) -> None:
    """One GGUF file of any kind."""
    from twllm.release.gguf import write_gguf
    from twllm.release.kquants import write_kquant

    told = {"name": facts.name, "license": facts.license}
    if kind in EXACT:
        write_gguf(folder, file, kind, facts=told, allow_template_mismatch=allow_template_mismatch)  # type: ignore[arg-type]
    else:
        write_kquant(folder, file, kind, facts=told, allow_template_mismatch=allow_template_mismatch)


def _write_modelfile(folder: Path, target: Path, model: str, asked: Export, facts: ModelFacts) -> None:
    from twllm.release.ollama import MOST_CONTEXT, modelfile

    generation = folder / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    context = asked.context or min(facts.context or MOST_CONTEXT, MOST_CONTEXT)
    text = modelfile(ChatTokenizer.load(folder), model, generation=settings, context=context, licence=facts.license)
    (target / "Modelfile").write_text(text, encoding="utf-8")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _beside(out: Path) -> Path:
    """Merged weights lie on the disk of the result, which has room for them, or must have."""
    parent = out.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent
