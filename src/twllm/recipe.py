"""A recipe: one TOML file that tells a model's whole life, read into frozen pydantic models.

`extends = "other.toml"` takes another recipe's keys first: tables are merged, everything else is replaced; `gates = {}` leaves none of the
parent's names, and `false` takes a whole optional section of the parent's away (`lora = false`). `--set a.b=c` goes on top, and
every value keeps its origin. Paths are relative to the recipe that names them (`--set`: to the
current folder) and may hold `${VARIABLES}`. An unknown key is an error with a suggestion.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_origin

from pydantic import BaseModel, Field, ValidationError

from twllm import data
from twllm.config import Config
from twllm.corpus.config import CorpusConfig
from twllm.errors import UserError, did_you_mean, require_file
from twllm.evaluate.config import EvaluateConfig
from twllm.keys import explain, section_of
from twllm.model.moe_config import MoeConfig
from twllm.model.rope_config import RopeConfig
from twllm.model.shape_config import DeepenConfig, PruneConfig
from twllm.tokens.config import TemplateConfig, TokenizerConfig
from twllm.train.config import FeedbackConfig, MachineConfig, OptimConfig, PretrainConfig, SftConfig
from twllm.train.picture_config import VisionConfig
from twllm.train.watch_config import WatchConfig

PATH_KEYS = (
    "path",
    "model",
    "questions",
    "tceval_data",
    "decontaminate_against",
    "contamination",
    "takedown",
    "count_tokens",
    "encoder",
    "texts",
)  # keys that hold a path, wherever they stand


class BaseConfig(Config):
    """[base]: where the weights come from."""

    size: str | None = Field(None, description="build from scratch: tiny, mini, 1b, 3b, 7b, 13b")
    model: str | None = Field(None, description="a Hugging Face folder, or a name on the hub (owner/name)")
    revision: str | None = Field(None, description="hub revision (commit or tag)")
    prune: PruneConfig | None = Field(None, description="cut `model` smaller before the first phase (docs/models.md)")
    deepen: DeepenConfig | None = Field(
        None, description="give `model` more layers before the first phase (docs/models.md)"
    )
    moe: MoeConfig | None = Field(None, description="make a mixture of experts of the dense model (docs/models.md)")
    rope: RopeConfig | None = Field(None, description="longer contexts for the model (docs/methods.md)")


Format = Literal["hf", "bf16", "gguf", "ollama", "int8", "gptq", "awq"]


class ReleaseConfig(Config):
    """[release]: the final folder."""

    formats: tuple[Format, ...] = Field(
        ("hf",), description="what is written: hf always, others into folders of their names"
    )
    gguf_types: tuple[str, ...] = Field(("f16",), description="of gguf and ollama: f32, f16, bf16, q8_0, q4_k_m …")
    license: str = Field("apache-2.0", description="licence of the weights; internal: not given on, nothing is checked")
    base_license: str = Field("", description="licence of [base] model where its card does not say")
    accept: tuple[Literal["generated", "unknown"], ...] = Field(
        (), description="terms that were read and accepted: docs/release.md"
    )
    description: str = Field("", description="one sentence for the card")


class Recipe(Config):
    """All sections of a recipe."""

    name: str = Field(description="name of the model")
    base: BaseConfig = Field(description="starting weights")
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="pieces")
    template: TemplateConfig = Field(default_factory=TemplateConfig, description="chat template")
    corpus: CorpusConfig = Field(default_factory=CorpusConfig, description="text for pretraining")
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig, description="continued pretraining")
    sft: SftConfig = Field(default_factory=SftConfig, description="supervised fine-tuning")
    feedback: FeedbackConfig = Field(default_factory=FeedbackConfig, description="training on ratings")
    vision: VisionConfig | None = Field(None, description="make the chat model see pictures (docs/vision.md)")
    watch: WatchConfig = Field(default_factory=WatchConfig, description="samples, alarms, trackers while it trains")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="suites")
    release: ReleaseConfig = Field(default_factory=ReleaseConfig, description="final folder")

    def all_phases(self) -> list[OptimConfig]:
        """The settings of every training phase, those of [vision] after the others."""
        seeing = (self.vision.encode, self.vision.align, self.vision.instruct) if self.vision else ()
        return [self.pretrain, self.sft, self.feedback, *(phase for phase in seeing if phase)]


SECTIONS: dict[str, type[BaseModel]] = {
    **{name: kind for name, field in Recipe.model_fields.items() if (kind := section_of(field))},
    "machine": MachineConfig,
}


@dataclass(frozen=True)
class Loaded:
    """A recipe with where it came from: `origins["sft.lr"]` is a file, `--set`, or absent (the default)."""

    recipe: Recipe
    file: Path
    origins: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()


def load_recipe(
    file: Path | str, overrides: Sequence[str] = (), cwd: Path | None = None, *, unset_ok: bool = False
) -> Loaded:
    """Read, merge, check the keys and types; paths in `overrides` are relative to `cwd` (None: the current folder).

    `unset_ok`: a path keeps a `${VARIABLE}` that is not set, for plans made where the data is not.

    Raises:
        UserError: no such file, broken TOML, an unknown key, a value of the wrong type, a path variable that is not set.
    """
    file = require_file(file, "找不到配方 (no such recipe)")
    tree, origins = _read(file, set(), unset_ok)
    for override in overrides:
        key, value = _parse_override(override)
        _put(tree, key.split("."), _resolve_paths(value, key.split(".")[-1], cwd or Path.cwd(), unset_ok), override)
        origins = {k: v for k, v in origins.items() if k != key and not k.startswith(key + ".")}
        origins |= {k: "--set" for k, _ in leaves({key: value})}
    recipe = validate(Recipe, _without_switched_off(tree, Recipe), file)
    return Loaded(recipe, file, origins, tuple(overrides))


def load_machine(file: Path | str | None) -> MachineConfig:
    """A machine file's settings; the defaults without one."""
    if file is None:
        return MachineConfig()
    file = require_file(file, "找不到機器設定 (no such machine file)")
    machine: MachineConfig = validate(MachineConfig, _parse_toml(file), file)
    return machine


def _read(file: Path, seen: set[Path], unset_ok: bool) -> tuple[dict[str, Any], dict[str, str]]:
    if file.resolve() in seen:
        raise UserError("extends 繞成一圈 (circular extends)", file, "拿掉其中一個 extends")
    tree = _parse_toml(file)
    parent = tree.pop("extends", None)
    root = file.parent.absolute()  # a run is looked at and resumed from other folders, too
    tree = {key: _resolve_paths(value, key, root, unset_ok) for key, value in tree.items()}
    origins = {key: file.name for key, _ in leaves(tree)}
    if parent is None:
        return tree, origins
    below, below_origins = _read(
        require_file(file.parent / parent, "extends 的配方不存在 (no such recipe)"), seen | {file.resolve()}, unset_ok
    )
    gone = tuple(f"{key}." for key, value in leaves(tree) if value == {} or value is False)  # tables that were cleared
    kept = {key: file for key, file in below_origins.items() if not key.startswith(gone)} if gone else below_origins
    return _merge(below, tree), {**kept, **origins}


def _parse_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except IsADirectoryError as error:
        raise UserError("這是資料夾，不是 TOML 檔 (a folder, not a file)", file, "給裡面的 .toml 檔") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"不是正確的 TOML (broken TOML): {error}", file, "修正這一行；字串要加引號") from error


def _merge(below: dict[str, Any], above: dict[str, Any], at: tuple[str, ...] = ()) -> dict[str, Any]:
    """Tables are merged; an empty one whose keys are free names (gates, lr_factors, shares) clears what was below."""
    both = {
        k: _merge(below[k], v, (*at, k))
        if isinstance(v, dict) and isinstance(below.get(k), dict) and (v or not _has_free_names((*at, k)))
        else v
        for k, v in above.items()
    }
    return {**below, **both}


def _has_free_names(loc: tuple[str, ...]) -> bool:
    section = _section_at(Recipe, loc[:-1])
    found = section.model_fields.get(loc[-1]) if section else None
    return found is not None and get_origin(found.annotation) is dict


def _without_switched_off(tree: Mapping[str, Any], section: type[BaseModel] | None) -> dict[str, Any]:
    """`lora = false` is no [sft.lora]: the key is left out where an optional section stands."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _section_at(section, (key,)) if section else None
        if value is False and inner and section and section.model_fields[key].default is None:
            continue
        found[key] = _without_switched_off(value, inner) if isinstance(value, dict) else value
    return found


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError("--set 要寫成 key=value (bad --set)", text, "例如 --set sft.lr=1e-5")
    try:
        return key.strip(), tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()  # a bare word is a string


def parse_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """`["lr=1e-4"]` → `{"lr": 0.0001}`: the settings of one section, given on the command line."""
    tree: dict[str, Any] = {}
    for override in overrides:
        key, value = _parse_override(override)
        _put(tree, key.split("."), value, override)
    return tree


def _put(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError("這個鍵底下沒有別的鍵 (not a table)", f"--set {override}", f"{key} 本身就是一個值")
    tree[keys[-1]] = value


def _resolve_paths(value: Any, key: str, root: Path, unset_ok: bool = False) -> Any:
    """Expand variables and make relative paths absolute, in every value whose key names a path."""
    if isinstance(value, dict):
        return {k: _resolve_paths(v, k, root, unset_ok) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve_paths(v, key, root, unset_ok) for v in value]
    if key not in PATH_KEYS or not isinstance(value, str) or value.startswith(data.PREFIX) or "://" in value:
        return value
    expanded = str(Path(os.path.expandvars(value)).expanduser())
    if "$" in expanded and unset_ok:
        return expanded
    if "$" in expanded:
        raise UserError("路徑裡的環境變數沒有設定 (variable not set)", value, "先 export 這個變數，或改用 --set 給路徑")
    if key in ("model", "encoder") and not expanded.startswith((".", "/")) and not (root / expanded).exists():
        return expanded  # a name on the hub
    return os.path.normpath(root / expanded)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("sft.lr", value) for every value of nested tables; lists are values."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def validate(model: type[Any], tree: Mapping[str, Any], where: object) -> Any:
    """Pydantic validation with our errors: the first problem, told in one sentence.

    Raises:
        UserError: see `load_recipe`.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        more = f"（另有 {error.error_count() - 1} 處問題）" if error.error_count() > 1 else ""
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            if first["loc"] == ("machine",):
                fix = "機器的設定寫在另一個檔，用 --machine 檔名 給（docs/recipe.md）"
                raise UserError(
                    "配方裡沒有 machine (machine settings go into a file of their own)", where, fix
                ) from error
            known = _fields_at(model, first["loc"][:-1])
            raise UserError(
                f"不認得的鍵 {path} (unknown key){more}", where, did_you_mean(str(first["loc"][-1]), known)
            ) from error
        if first["type"] == "missing":
            raise UserError(f"缺少 {path} (missing key){more}", where, f"加上 {path} = …") from error
        name = next((key for key, kind in SECTIONS.items() if kind is model), "")
        place = ".".join(part for part in (name, *map(str, first["loc"][: 0 if name else 1])) if part)
        raise UserError(
            explain(first, path, more), where, f"twllm recipe keys {place} 列出每個鍵的意思 (what the keys mean)"
        ) from error


def _fields_at(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Field names of the section at this place."""
    section = _section_at(model, loc)
    return list(section.model_fields) if section else []


def _section_at(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    """The section at this place; None where there is a plain value or nothing."""
    for part in loc:
        if isinstance(part, int):
            continue
        if (found := model.model_fields.get(part)) is None:
            return None
        if (inner := section_of(found)) is None:
            return None
        model = inner
    return model


def describe(loaded: Loaded) -> list[tuple[str, Any, str]]:
    """(key, value, origin) of every value, in the order of the sections: what `twllm recipe show` prints."""
    rows = []
    for key, value in leaves(loaded.recipe.model_dump(mode="json")):
        parts = key.split(".")
        origin = next(
            (loaded.origins[k] for i in range(len(parts), 0, -1) if (k := ".".join(parts[:i])) in loaded.origins),
            "default",
        )
        rows.append((key, value, origin))
    return rows
