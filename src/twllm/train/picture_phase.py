"""One phase of training on pictures, from folders to a folder: which parts learn, rows with pictures, the loop, a LLaVA checkpoint.

The conversations are tokenised into the phase's work folder first, so that a killed run goes on with the same shards.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twllm.artifact import fingerprint, write_folder, write_json
from twllm.errors import UserError
from twllm.tokens.build import check_licences, data_facts
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Tally
from twllm.tokens.picture_chats import picture_shard, read_picture_chats
from twllm.tokens.picture_template import IMAGE
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import MachineConfig
from twllm.train.picture_config import PicturePhaseConfig, VisionConfig


def begin_seeing(
    config: VisionConfig, language: Path, encoder: Path | None = None
) -> tuple[Any, ChatTokenizer, dict[str, Any]]:
    """(model, tokenizer, how pictures are prepared): the chat model of a folder joined with the encoder.

    `encoder`: a folder to take it from instead of what the config names.

    Raises:
        UserError: the checkpoint or the encoder cannot be used.
    """
    from twllm.model.build import load
    from twllm.model.vision import build_encoder, join, load_encoder

    tokenizer = ChatTokenizer.load(language)
    if encoder is not None:
        vision, prepared = load_encoder(str(encoder))
    elif config.size:
        vision, prepared = build_encoder(config.size, config.seed)
    else:
        vision, prepared = load_encoder(str(config.encoder), config.revision)
    model, seeing = join(load(language), vision, tokenizer, config.layer, config.multiple, config.seed)
    return model, seeing, prepared


def reopen_seeing(folder: Path) -> tuple[Any, ChatTokenizer, dict[str, Any]]:
    """The same three of a checkpoint that sees."""
    from twllm.model.build import load
    from twllm.model.vision import load_processor

    processor = load_processor(folder)
    prepared = {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}
    return load(folder), ChatTokenizer.load(folder), prepared


def save_seeing(model: Any, tokenizer: ChatTokenizer, prepared: dict[str, Any], out: Path) -> None:
    """A folder that transformers' LlavaForConditionalGeneration and AutoProcessor open."""
    from twllm.model.build import save
    from twllm.model.vision import save_processor

    save(model, tokenizer, out)
    save_processor(model, prepared, out)


def save_encoder(model: Any, prepared: dict[str, Any], out: Path) -> None:
    """The encoder alone, a CLIP folder like one from a hub."""
    from twllm.model.vision import picture_processor

    model.model.vision_tower.save_pretrained(out)
    picture_processor(model, prepared).save_pretrained(out)


def train_pictures(
    name: str, phase: PicturePhaseConfig, datasets: Sequence[DatasetConfig], start: tuple[Any, ChatTokenizer, dict[str, Any]], out: Path,
    work: Path, machine: MachineConfig, again: Callable[[], tuple[Any, ...]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train and fill `out` with the checkpoint, `loss.png` and `metrics.jsonl`; returns the metrics for the manifest.

    `again` makes `start` anew, for what frozen.py rounded. The phase "encode" trains the encoder alone, by its captions' tokens, and `out` is the encoder.
    """
    from twllm.model.build import weights_fingerprint
    from twllm.model.vision import picture_processor
    from twllm.train.distributed import launched
    from twllm.train.loop import Trainer
    from twllm.train.observer import keep_logs
    from twllm.train.pictures import BagObjective, CaptionTokens, PictureObjective, choose_parts, load_picture_data

    if launched():
        raise UserError(
            "圖片訓練還不能分給多個行程 (one process only)", f"vision.{name}", "不用 torchrun，直接 twllm run"
        )
    model, tokenizer, prepared = start
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", phase.context)
    if phase.context > positions:
        what = f"{name}.context {phase.context} 超過模型的 {positions} (longer than the model's positions)"
        raise UserError(what, f"vision.{name}.context", f"降到 {positions} 以下")
    facts = tokenize_pictures(work / "tokens", datasets, tokenizer, phase.context, int(model.config.image_seq_length))
    processor = picture_processor(model, prepared)
    weights = [dataset.weight for dataset in datasets]
    data = load_picture_data(work / "tokens", weights, phase.context, phase.seed, processor, tokenizer.controls[IMAGE])
    learning = choose_parts(model, phase.train)
    objective: Any = PictureObjective
    if name == "encode":
        classes = CaptionTokens(data)
        model.caption_head = classes.head(int(model.config.vision_config.hidden_size))
        objective = partial(BagObjective, classes=classes)
    trainer = Trainer(name, model, data, phase, machine, work, None, objective)
    metrics = trainer.run()
    trainer.methods.frozen.restore(model, (lambda: again()[0]) if again else None)
    if name == "encode":
        del model.caption_head
        save_encoder(model, prepared, out)
    else:
        save_seeing(model, tokenizer, prepared, out)
    keep_logs(work, out, name)
    return {
        **metrics,
        "datasets": facts,
        "learning_parameters": learning,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_picture": int(model.config.image_seq_length),
        "weights_fingerprint": weights_fingerprint(model.state_dict()),
        "template_fingerprint": tokenizer.template_fingerprint,
    }


def tokenize_pictures(
    out: Path, datasets: Sequence[DatasetConfig], tokenizer: ChatTokenizer, context: int, tokens_each: int
) -> dict[str, Any]:
    """One shard a data set (`000`, `001`, …), whole or not at all; done before, it is only read."""
    made_from = fingerprint(
        [[d.model_dump(mode="json") for d in datasets], tokenizer.template_fingerprint, context, tokens_each]
    )
    file = out / "facts.json"
    if file.is_file():
        done = json.loads(file.read_text(encoding="utf-8"))
        if done["made_from"] == made_from:
            return dict(done["datasets"])
    facts: dict[str, Any] = {}
    with write_folder(out) as folder:
        for number, dataset in enumerate(datasets):
            tally = Tally()
            chats = list(read_picture_chats(dataset, tally))
            check_licences(dataset, (chat.conversation for chat in chats))
            shard = picture_shard(folder / f"{number:03}", chats, tokenizer, context, tokens_each)
            told = data_facts((chat.conversation for chat in chats), tally)
            facts[f"{number:03}"] = {"path": dataset.path, **told, **shard}
        write_json(folder / "facts.json", {"made_from": made_from, "datasets": facts})
        write_json(folder / "manifest.json", {"stage": "tokens"})  # ours: may be replaced
    return facts
