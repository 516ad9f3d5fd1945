"""The stages of a recipe's [vision]: pictures → encode → align → instruct → evaluate-vision; the rest of the recipe goes on with what sees.

`encode` is there for an encoder from scratch only: it learns which tokens the captions have, and its result is a CLIP folder like one
from a hub. `align` trains the projector, `instruct` what the recipe says (docs/vision.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twllm import data
from twllm.artifact import hash_path
from twllm.errors import UserError
from twllm.tokens.config import DatasetConfig
from twllm.train.picture_config import PicturePhaseConfig, VisionConfig

if TYPE_CHECKING:
    from twllm.pipeline.stages import Context, Facts, Stage
    from twllm.recipe import BaseConfig

PICTURES, EVALUATION = "pictures", "evaluate-vision"
FILES = {"encode": "captions.jsonl", "align": "captions.jsonl", "instruct": "instruct.jsonl"}


def add_vision(vision: VisionConfig, found: list[Stage], chat: str, base: BaseConfig) -> str:
    """Add the stages that make the chat model of stage `chat` ("": `base` itself) see; returns the name of the last one."""
    if vision.draw:
        found.append(_draw_stage(vision))
    encoder = ""
    if vision.encode and vision.encode.enabled:
        found.append(_phase_stage(vision, "encode", vision.encode, chat, "", base))
        encoder = "encode"
    last = chat
    for name, phase in (("align", vision.align), ("instruct", vision.instruct)):
        if phase.enabled:
            found.append(_phase_stage(vision, name, phase, last, encoder if last == chat else "", base))
            last = name
    if vision.questions or vision.draw:
        found.append(_evaluate_stage(vision, last))
    return last


def _draw_stage(vision: VisionConfig) -> Stage:
    from twllm.pipeline.stages import Stage

    draw = vision.draw
    assert draw is not None

    def run(c: Context) -> Facts:
        from twllm.draw.build import draw_set

        return draw_set(c.out, draw.pictures, draw.held_out, draw.seed)

    return Stage(PICTURES, (), draw.model_dump(mode="json"), run)


def _phase_stage(
    vision: VisionConfig, name: str, phase: PicturePhaseConfig, start: str, encoder: str, base: BaseConfig
) -> Stage:
    """`start`: the stage whose model learns, a chat model at first; `encoder`: the stage that made one."""
    from twllm.pipeline.stages import Stage

    first = name == "encode" or start not in FILES
    config: Facts = phase.model_dump(mode="json", exclude=phase.unseen)
    if first:
        keys = {"encoder", "revision", "size", "layer", "multiple", "seed"}
        config |= {"vision": vision.model_dump(mode="json", include=keys)}
    files = {d.path: hash_path(data.resolve(d.path)) for d in phase.datasets}
    if first and vision.encoder and Path(vision.encoder).is_dir():
        files[vision.encoder] = hash_path(vision.encoder)
    if not start:
        config |= {"base": base.model_dump(mode="json", include={"model", "revision"})}
        if Path(str(base.model)).is_dir():
            files[str(base.model)] = hash_path(str(base.model))
    drawn = vision.draw is not None

    def run(c: Context) -> Facts:
        from twllm.model.hub import fetch
        from twllm.train.picture_phase import begin_seeing, reopen_seeing, train_pictures

        model = c.inputs[start] if start else fetch(str(base.model), base.revision)

        def begin() -> Any:
            return (
                begin_seeing(vision, model, c.inputs[encoder] if encoder else None) if first else reopen_seeing(model)
            )

        datasets = [*([_drawn(c.inputs[PICTURES], FILES[name])] if drawn else []), *phase.datasets]
        return train_pictures(name, phase, datasets, begin(), c.out, c.work, c.machine, begin)

    needs = (*((start,) if start else ()), *((encoder,) if encoder else ()), *((PICTURES,) if drawn else ()))
    return Stage(name, needs, config, run, files)


def _drawn(folder: Path, file: str) -> DatasetConfig:
    return DatasetConfig(path=str(folder / file))


def _evaluate_stage(vision: VisionConfig, model: str) -> Stage:
    from twllm.pipeline.stages import Stage

    files = {vision.questions: hash_path(vision.questions)} if vision.questions else {}

    def run(c: Context) -> Facts:
        from twllm.evaluate.pictures import evaluate_pictures

        file = Path(vision.questions) if vision.questions else c.inputs[PICTURES] / "held_out.jsonl"
        result = evaluate_pictures(c.inputs[model], file, c.out)
        return {name: result[name] for name in ("sees", "blank", "text_only", "difference")}

    needs = (model, *(() if vision.questions else (PICTURES,)))
    return Stage(EVALUATION, needs, {}, run, files)


def check_picture_gate(vision: VisionConfig, result: Path) -> None:
    """Refuse a release whose share of right answers about pictures is below the recipe's gate.

    Raises:
        UserError: it is.
    """
    score = json.loads((result / "result.json").read_text(encoding="utf-8"))["sees"]["score"]
    if vision.gate is not None and score < vision.gate:
        what = f"圖片題答對 {score:.3f}，未達門檻 {vision.gate} (release gate)"
        raise UserError(what, "vision.gate", "改進模型，或調整配方裡的門檻")


def picture_data(vision: VisionConfig | None) -> tuple[str, ...]:
    """Names of the stages whose data the released model has seen."""
    return tuple(name for name in ("align", "instruct") if vision and getattr(vision, name).enabled)
