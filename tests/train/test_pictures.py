"""Training on pictures: the loss is transformers', parts stay or learn as asked, a folder opens in transformers and answers there as here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.seeing import PREPARED, encoder, picture, seeing_folder, seeing_model
from twllm.errors import UserError
from twllm.model.build import load
from twllm.model.vision import join, language_view, load_encoder, picture_processor
from twllm.tokens.config import DatasetConfig
from twllm.tokens.picture_chats import picture_shard, read_picture_chats
from twllm.tokens.picture_template import IMAGE
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.attention import NAME
from twllm.train.loss import token_loss
from twllm.train.pictures import PictureData, choose_parts

QUESTION = [{"type": "image"}, {"type": "text", "text": "這是什麼<image>？"}]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Chats with one picture, two, none; two turns each."""
    lines = []
    for number in range(8):
        names = [f"{number}-{n}.png" for n in range(number % 3)]
        for n, name in enumerate(names):
            picture(3 * number + n).save(tmp_path / name)
        turns = [
            {"role": "user", "content": "<image>\n" * len(names) + f"第 {number} 張是什麼？"}, {"role": "assistant", "content": "玉山。" * (number + 1)},
            {"role": "user", "content": "還有呢？"}, {"role": "assistant", "content": "沒有。"},
        ]  # fmt: skip
        lines.append(json.dumps({"images": names, "messages": turns, "license": "x"}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "data.jsonl"


def rows_of(model: Any, tokenizer: ChatTokenizer, file: Path, folder: Path) -> PictureData:
    chats = list(read_picture_chats(DatasetConfig(path=str(file))))
    picture_shard(folder, chats, tokenizer, 250, model.config.image_seq_length)
    return PictureData(
        [TokenShard(folder)], [1.0], 250, 1, picture_processor(model, PREPARED), tokenizer.controls[IMAGE]
    )


@pytest.mark.parametrize(("kind", "layer"), [("clip", -2), ("siglip", -1)])
@pytest.mark.parametrize("form", ["mask", "pieces"])
def test_loss_is_that_of_transformers(
    kind: str, layer: int, form: str, tiny_checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    model, tokenizer = seeing_model(tiny_checkpoint, kind, layer)
    data = rows_of(model, tokenizer, rows, tmp_path / "shard")
    assert 8 <= data.prefix < 250  # the system text is shared, and no picture
    batch = data.batch(data.rows(0, len(data.epoch_rows(0))))
    assert len(batch.pixels) == 7 and not (batch.ids[:, : data.prefix] == data.image_id).any()
    expected, labelled = 0.0, 0
    with torch.no_grad():
        for document, length in enumerate(data.lengths.tolist()):
            ids, learned = data._read((document, 0, length))
            pixels = [data._prepare(reference) for reference in data.pictures[document]]
            given = {"pixel_values": torch.from_numpy(np.stack(pixels))} if pixels else {}
            labels = torch.tensor(np.where(learned, ids, -100))[None]
            count = int((labels[:, 1:] >= 0).sum())
            expected += float(model(input_ids=torch.tensor(ids)[None], labels=labels, **given).loss) * count
            labelled += count
        model.set_attn_implementation(NAME if form == "pieces" else "sdpa")
        model.model.vision_tower.set_attn_implementation("sdpa")
        loss, found = token_loss(model, batch, form)
    assert found == labelled
    assert abs(float(loss) - expected) / labelled < 1e-5


def test_only_chosen_parts_learn(tiny_checkpoint: Path) -> None:
    model, _ = seeing_model(tiny_checkpoint)
    assert set(choose_parts(model, ["projector"])) == {"projector"}
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning and all("multi_modal_projector" in name for name in learning)
    choose_parts(model, ["projector", "encoder", "language"])
    resting = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert resting and all(
        "layers.1." in name or "post_layernorm" in name for name in resting if "vision_tower" in name
    )
    assert all("vision_tower" in name for name in resting)


def test_folder_opens_in_transformers_and_prompts_are_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = seeing_folder(tiny_checkpoint, tmp_path / "sees")
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    tokenizer = ChatTokenizer.load(folder)
    chat = [{"role": "user", "content": [*QUESTION[:1], {"type": "text", "text": "這是什麼？"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    theirs = processor(images=[picture(1)], text=text, return_tensors="pt")
    ids = tokenizer.encode_chat(chat, add_generation_prompt=True).ids
    image = tokenizer.controls[IMAGE]
    ours = [i for id in ids for i in ([id] * (4 if id == image else 1))]
    assert theirs.input_ids[0].tolist() == ours and model.config.image_token_id == image
    forged = tokenizer.encode_chat([{"role": "user", "content": QUESTION}]).ids
    assert forged.count(image) == 1
    view = language_view(load(folder))
    plain = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(view(input_ids=plain).logits, model(input_ids=plain).logits)


def test_an_encoder_from_a_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A whole CLIP checkpoint, as on the hub, gives its vision half; other models are refused."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    text = CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    whole = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=encoder().config.to_dict()))
    whole.save_pretrained(tmp_path / "clip")
    model, _ = seeing_model(tiny_checkpoint)
    picture_processor(model, PREPARED).save_pretrained(tmp_path / "clip")
    found, prepared = load_encoder(str(tmp_path / "clip"))
    weight = "embeddings.patch_embedding.weight"
    theirs = dict(whole.vision_model.named_parameters())
    assert torch.equal(
        {n.removeprefix("vision_model."): p for n, p in found.named_parameters()}[weight], theirs[weight]
    )
    assert prepared["image_mean"] == PREPARED["image_mean"]
    with pytest.raises(UserError, match="not CLIP or SigLIP"):
        load_encoder(str(tiny_checkpoint))
    with pytest.raises(UserError, match="no such layer"):
        seeing_model(tiny_checkpoint, layer=-9)
    with pytest.raises(UserError, match="sees already"):
        join(model, encoder(), ChatTokenizer.load(tiny_checkpoint))
