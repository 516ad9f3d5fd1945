"""The stages of [vision] at a size for CI: draw, encode, align, instruct, ask; the result opens in transformers and answers over HTTP."""

from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoProcessor, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from tests.seeing import data_url
from twllm.draw.build import draw_set
from twllm.errors import UserError
from twllm.evaluate.pictures import read_questions
from twllm.feedback.store import RatingStore
from twllm.model.vision import load_encoder
from twllm.pipeline.stages import Context, Stage, build_stages
from twllm.pipeline.vision_stages import add_vision
from twllm.recipe import BaseConfig, load_recipe, validate
from twllm.serve.app import create_app
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.serve.operation.service import Service
from twllm.tokens.pictures import read_picture
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import MachineConfig
from twllm.train.picture_config import VisionConfig

RECIPES = Path(__file__).parents[2] / "recipes"
PHASE = {"lr": 2e-3, "batch_tokens": 2048, "context": 1024}


@pytest.fixture(scope="module")
def chat(tiny_tokenizer: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 1024,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=tiny_tokenizer.vocab_size, initializer_range=0.1, **shape)).save_pretrained(
        folder
    )
    tiny_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def ran(chat: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Folders and facts of all stages by name."""
    root = tmp_path_factory.mktemp("run")
    vision = VisionConfig.model_validate(
        {
            "size": "tiny", "layer": -1, "draw": {"pictures": 18, "held_out": 6},
            "encode": {**PHASE, "train": ["encoder"], "epochs": 2}, "align": {**PHASE, "epochs": 1},
            "instruct": {**PHASE, "epochs": 1, "train": ["projector", "language"]},
        }
    )  # fmt: skip
    stages: list[Stage] = []
    assert add_vision(vision, stages, "", BaseConfig(model=str(chat))) == "instruct"
    machine = MachineConfig(threads=1, tensorboard=False, compile="off", precision="fp32")
    made: dict[str, Any] = {}
    for stage in stages:
        out, work = root / stage.name, root / "work" / stage.name
        out.mkdir()
        inputs = {name: made[name][0] for name in stage.needs}
        made[stage.name] = (out, stage.run(Context(out, inputs, work, machine)))
    return made


def test_stages_follow_each_other(ran: dict[str, Any], chat: Path) -> None:
    assert list(ran) == ["pictures", "encode", "align", "instruct", "evaluate-vision"]
    encoder, prepared = load_encoder(str(ran["encode"][0]))  # a CLIP folder, as from a hub
    assert encoder.config.image_size == 96 and len(prepared["image_mean"]) == 3
    models = {name: LlavaForConditionalGeneration.from_pretrained(ran[name][0]) for name in ("align", "instruct")}
    start = LlamaForCausalLM.from_pretrained(chat).state_dict()
    parts = {name: dict(model.named_parameters()) for name, model in models.items()}
    for name, value in parts["align"].items():
        if "language_model.layers" in name:  # the projector alone has learned
            assert torch.equal(value, start[name.replace("model.language_model", "model")])
        if "vision_tower" in name:
            ours = name.split("vision_tower.")[1].removeprefix("vision_model.")
            assert torch.equal(value, {n.removeprefix("vision_model."): p for n, p in encoder.named_parameters()}[ours])
            assert torch.equal(value, parts["instruct"][name])
    moved = [n for n in parts["instruct"] if not torch.equal(parts["instruct"][n], parts["align"][n])]
    assert any("multi_modal_projector" in n for n in moved) and any("language_model" in n for n in moved)
    facts = {name: ran[name][1] for name in ("encode", "align", "instruct")}
    assert all(fact["datasets"]["000"]["num_pictures"] == 18 and fact["loss"] > 0 for fact in facts.values())
    assert facts["instruct"]["datasets"]["000"]["licenses"] == {"Apache-2.0": 18}
    assert set(facts["align"]["learning_parameters"]) == {"projector"}


def test_questions_are_asked_three_ways(ran: dict[str, Any]) -> None:
    import json

    out, facts = ran["evaluate-vision"]
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    count = ran["pictures"][1]["held_out_questions"]
    assert all(result[name]["n"] == count for name in ("sees", "blank", "text_only")) and len(result["items"]) == count
    assert {"answer", "correct"} == set(result["items"][0]["sees"]) and "全部" in (out / "report.md").read_text(
        encoding="utf-8"
    )
    assert facts["difference"]["pictures"] == 6


def test_it_answers_as_transformers_does(ran: dict[str, Any], database: Path) -> None:
    folder, pictures = ran["instruct"][0], ran["pictures"][0]
    row = read_questions(pictures / "held_out.jsonl")[0]
    image = read_picture(row["image"], pictures)
    engine = TorchEngine(folder, threads=1, precision="fp32")
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}}, {"type": "text", "text": row["question"]}]
    with TestClient(create_app(Service.single(engine, RatingStore(database), "看圖"))) as client:
        assert client.get("/api/config").json()["models"][0]["vision"] is True
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 8, "temperature": 0}
        answer = client.post("/v1/chat/completions", json=body).json()
    processor, model = AutoProcessor.from_pretrained(folder), LlavaForConditionalGeneration.from_pretrained(folder)
    chat = [{"role": "user", "content": [{"type": "image"}, parts[1]]}]
    given = processor(
        images=[image], text=processor.apply_chat_template(chat, add_generation_prompt=True), return_tensors="pt"
    )
    with torch.no_grad():
        said = model.generate(**given, max_new_tokens=8, do_sample=False)[0, given.input_ids.shape[1] :]
    expected = processor.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert answer["choices"][0]["message"]["content"].replace("\ufffd", "") == expected.replace("\ufffd", "")
    assert answer["usage"]["prompt_tokens"] == given.input_ids.shape[1]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "ratings.db"


def test_drawn_pictures_are_a_function_of_the_seed_and_held_out(tmp_path: Path) -> None:
    import json

    facts = [draw_set(tmp_path / name, 30, 12, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    files = {name: sorted((tmp_path / name).rglob("*.png")) for name in "abc"}
    assert [f.read_bytes() for f in files["a"]] == [f.read_bytes() for f in files["b"]]
    assert facts[0] == facts[1] and len(files["a"]) == 42
    assert [f.read_bytes() for f in files["a"]] != [f.read_bytes() for f in files["c"]]
    held = {
        json.loads(line)["image"]
        for line in (tmp_path / "a" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    }
    trained = {
        json.loads(line)["image"]
        for line in (tmp_path / "a" / "instruct.jsonl").read_text(encoding="utf-8").splitlines()
    }
    assert len(held) == 12 and len(trained) == 30 and not held & trained


def test_recipe_has_the_stages_and_names_its_data() -> None:
    loaded = load_recipe(RECIPES / "vision.toml")
    stages = build_stages(loaded)
    assert [name for name in stages if name in ("pictures", "encode", "align", "instruct", "evaluate-vision")] == [
        "pictures", "encode", "align", "instruct", "evaluate-vision",
    ]  # fmt: skip
    assert stages["evaluate-full"].needs[0] == "instruct" and "instruct" in stages["model"].needs
    from twllm.release.facts import data_uses

    assert {use.use for use in data_uses(loaded.recipe)} >= {"align", "instruct"}


WRONG = {
    "both": ({"size": "tiny", "encoder": "x/y", "draw": {}}, "exactly one"),
    "no data": ({"encoder": "x/y"}, "has no datasets"),
    "untrained": ({"size": "tiny", "draw": {}}, "has to learn before"),
    "idle encode": ({"encoder": "x/y", "draw": {}, "encode": {"train": ["encoder"]}}, "ignored with encoder"),
    "encode the rest": ({"size": "tiny", "draw": {}, "encode": {"train": ["projector"]}}, "encoder alone"),
    "row": ({"encoder": "x/y", "draw": {}, "align": {"batch_tokens": 100, "context": 200}}, "less than one row"),
    "lora": ({"encoder": "x/y", "draw": {}, "instruct": {"lora": {}}}, "not there for pictures"),
    "nothing": ({"encoder": "x/y", "draw": {}, "align": {"train": []}}, "nothing would learn"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_be(name: str) -> None:
    settings, what = WRONG[name]
    with pytest.raises(UserError, match=what):
        validate(VisionConfig, settings, "recipe")
