"""`twllm export` from folder to folder: each result opened by what people open it with, each refusal before anything is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from twllm.cli import app
from twllm.corpus.licences import DataUse
from twllm.errors import UserError
from twllm.export.build import Export, check_release, export, write_release
from twllm.model.build import save
from twllm.recipe import Recipe
from twllm.tokens.contract import TemplateMismatch
from twllm.tokens.template import load_template
from twllm.tokens.tokenizer import ChatTokenizer


@pytest.fixture(scope="module")
def model(tiny_tokenizer: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama, released under apache-2.0 by its card, with the template contract."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny_tokenizer.vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model") / "島語"
    folder.mkdir()
    save(LlamaForCausalLM(config), tiny_tokenizer, folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# 島語\n", encoding="utf-8")
    return folder


def copy(model: Path, to: Path) -> Path:
    return Path(shutil.copytree(model, to))


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(input_ids=torch.tensor([ids])).logits[0]
    return found


def test_hf_folder_opens_and_is_equal(model: Path, tmp_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    from transformers import AutoTokenizer

    export(str(model), tmp_path / "out", Export())
    chat = [{"role": "user", "content": "玉山多高？"}]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(chat, add_generation_prompt=True)[
        "input_ids"
    ]
    assert theirs == tiny_tokenizer.encode_chat(chat, add_generation_prompt=True).ids
    assert torch.equal(logits(model, theirs), logits(tmp_path / "out", theirs))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card and "# 島語" in card and tiny_tokenizer.template_fingerprint in card
    again = export(str(tmp_path / "out"), tmp_path / "again", Export())
    assert again.license == "apache-2.0" and again.name == "島語"


def test_bf16_is_half_the_size_and_each_number_rounded_once(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    export(str(model), tmp_path / "out", Export(formats=("bf16",)))
    there, here = (AutoModelForCausalLM.from_pretrained(folder) for folder in (model, tmp_path / "out"))
    for name, tensor in there.state_dict().items():
        assert torch.equal(here.state_dict()[name], tensor.to(torch.bfloat16))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (model, tmp_path / "out")]
    assert (
        sizes[1] < 0.52 * sizes[0] and json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    )
    assert "license: apache-2.0" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_all_engines_open_it(model: Path, tmp_path: Path) -> None:
    from twllm.serve.engines.interface import Sampling
    from twllm.serve.engines.torch.engine import TorchEngine

    export(str(model), tmp_path / "out", Export())
    ids = ChatTokenizer.load(model).encode_chat([{"role": "user", "content": "你好"}], add_generation_prompt=True).ids
    expected = logits(model, ids)[-1].argmax().item()
    engine = TorchEngine(tmp_path / "out", threads=1, precision="fp32")
    try:
        first = next(iter(engine.generate(ids, Sampling(temperature=0.0, max_tokens=1))))
    finally:
        engine.close()
    assert first.id == expected
    pytest.importorskip("openvino")
    from twllm.serve.engines.batching.runner import Work
    from twllm.serve.engines.cpu.openvino import OpenVinoRunner

    runner = OpenVinoRunner(tmp_path / "out", precision="fp32", slots=1, threads=1)
    try:
        (row,) = runner.step([Work(0, ids, True)])
    finally:
        runner.close()
    assert row is not None and int(row.argmax()) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_torch_engine_opens_int8(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from twllm.serve.engines.interface import Sampling
    from twllm.serve.engines.torch.engine import TorchEngine

    export(str(model), tmp_path / "out", Export(formats=("int8",), scores=False))
    engine = TorchEngine(tmp_path / "out", threads=1, precision="fp32")
    try:
        assert len(list(engine.generate([5, 6, 7, 8], Sampling(temperature=0.0, max_tokens=3)))) >= 1
    finally:
        engine.close()


def test_several_formats_beside_each_other(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    asked = Export(formats=("hf", "gguf", "ollama"), gguf_types=("f16", "bf16"), scores=False)
    export(str(model), tmp_path / "out", asked)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {
        "model.safetensors",
        "gguf/島語-f16.gguf",
        "gguf/島語-bf16.gguf",
        "ollama/Modelfile",
        "gguf/README.md",
    } <= names
    assert not any(name.startswith("ollama/") and name.endswith(".gguf") for name in names)
    assert "FROM ../gguf/島語-f16.gguf" in (tmp_path / "out" / "ollama" / "Modelfile").read_text(encoding="utf-8")
    export(str(model), tmp_path / "alone", Export(formats=("ollama",), context=128))
    text = (tmp_path / "alone" / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./島語-f16.gguf" in text and "num_ctx 128" in text and (tmp_path / "alone" / "島語-f16.gguf").is_file()


def test_llama_cpp_answers_from_the_gguf_file(model: Path, tmp_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    export(str(model), tmp_path / "out", Export(formats=("gguf",), gguf_types=("f32",)))
    chat = [{"role": "user", "content": "玉山多高？"}]
    ids = tiny_tokenizer.encode_chat(chat, add_generation_prompt=True).ids
    opened = llama_cpp.Llama(str(tmp_path / "out" / "島語-f32.gguf"), n_ctx=256, verbose=False, n_threads=1)
    try:
        answer = opened.create_chat_completion(chat, max_tokens=4, temperature=0.0)
        assert answer["usage"]["prompt_tokens"] == len(ids)  # its own template and begin token
    finally:
        opened.close()


def adapter(model: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "base_model_name_or_path": str(model)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    torch.manual_seed(1)
    tensors = {f"{name}.lora_A.weight": torch.randn(2, 64), f"{name}.lora_B.weight": torch.randn(64, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")


def test_an_adapter_is_merged_on_the_way(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    adapter(model, tmp_path / "lora")
    facts = export(str(tmp_path / "lora"), tmp_path / "out", Export(formats=("hf", "gguf"), scores=False))
    assert (
        facts.base == "島語"
        and facts.license == "apache-2.0"
        and (tmp_path / "out" / "gguf" / "lora-f16.gguf").is_file()
    )
    assert not torch.equal(logits(model, [5, 6, 7]), logits(tmp_path / "out", [5, 6, 7]))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    (tmp_path / "lora" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8")
    with pytest.raises(UserError, match="non-commercial"):
        export(str(tmp_path / "lora"), tmp_path / "no", Export(license="apache-2.0"))
    with pytest.raises(UserError, match="only for adapters"):
        export(str(model), tmp_path / "no", Export(base=str(model)))
    with pytest.raises(UserError, match="base is not there"):
        export(str(tmp_path / "lora"), tmp_path / "no", Export(base=str(tmp_path / "nowhere")))
    assert not (tmp_path / "no").exists()


def test_another_template_is_refused(model: Path, tmp_path: Path) -> None:
    changed = copy(model, tmp_path / "changed")
    (changed / "chat_template.jinja").write_text(load_template("taiwan-llm-v1"), encoding="utf-8")
    with pytest.raises(TemplateMismatch):
        export(str(changed), tmp_path / "out", Export())
    assert not (tmp_path / "out").exists()
    export(str(changed), tmp_path / "out", Export(allow_template_mismatch=True))


def test_licences_are_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    nc = (DataUse("alpaca-tw", "訓練", {"cc-by-nc-4.0": 0}),)
    with pytest.raises(UserError, match="non-commercial data"):
        export(str(model), tmp_path / "out", Export(data=nc))
    plain = copy(model, tmp_path / "plain")
    (plain / "README.md").unlink()
    with pytest.raises(UserError, match=r"no licence"):
        export(str(plain), tmp_path / "out", Export())
    with pytest.raises(UserError, match="base licence unknown"):
        export(str(plain), tmp_path / "out", Export(license="mit"))
    with pytest.raises(UserError, match="has to be kept"):
        export(str(plain), tmp_path / "out", Export(license="mit", base_license="llama3"))
    assert not (tmp_path / "out").exists()
    export(str(plain), tmp_path / "out", Export(license="internal"))
    assert "內部使用" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_what_was_accepted_once_is_known_at_the_next_export(model: Path, tmp_path: Path) -> None:
    gpt = (DataUse("chats", "訓練", {"CC-BY-4.0, generated by OpenAI models": 9}),)
    export(str(model), tmp_path / "out", Export(data=gpt, accept=("generated",)))
    assert "OpenAI" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("* 起點")[0]
    export(str(tmp_path / "out"), tmp_path / "again", Export())
    with pytest.raises(UserError, match="OpenAI"):
        export(str(tmp_path / "out"), tmp_path / "mit", Export(license="mit"))


def test_a_failure_leaves_what_was_there(model: Path, tmp_path: Path) -> None:
    export(str(model), tmp_path / "out", Export())
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    broken = copy(model, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(UserError, match="not Llama-shaped"):
        export(str(broken), tmp_path / "out", Export(formats=("hf", "gguf")))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="not made by twllm"):
        export(str(model), tmp_path / "mine", Export())


def stage(model: Path, folder: Path, **release: Any) -> dict[str, Any]:
    """The release stage on a finished model with 3 rows of data."""
    made = Recipe.model_validate(
        {"name": "島語", "base": {"size": "tiny"}, "sft": {"datasets": [{"path": "qa.jsonl", "license": "MIT"}]},
         "feedback": {"enabled": False}, "evaluate": {"gates": {"culture": 0.8}}, "release": release}
    )  # fmt: skip
    copy(model, folder / "sft")
    for name in ("evaluation", "tokens-sft", "out"):
        (folder / name).mkdir()
    facts = {"parameters": 5, "weights_fingerprint": "w", "template_fingerprint": "t"}
    trained = {"metrics": facts | {"template_fingerprint": ChatTokenizer.load(model).template_fingerprint}}
    (folder / "sft" / "manifest.json").write_text(json.dumps(trained))
    (folder / "evaluation" / "result.json").write_text(json.dumps({"culture": {"score": 0.9, "n": 100}}))
    counted = {"stage": "tokens-sft", "metrics": {"000": {"licenses": {"CC-BY-NC-4.0": 3}}}}
    (folder / "tokens-sft" / "manifest.json").write_text(json.dumps(counted))
    return write_release(made, folder / "sft", folder / "evaluation", folder / "out", [folder / "tokens-sft"])


def test_a_recipes_release_writes_its_formats(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    facts = stage(model, tmp_path, license="cc-by-nc-4.0", formats=["gguf", "ollama"], gguf_types=["bf16"])
    assert facts["parameters"] == 5 and facts["card"]["uses"][0]["licences"] == {"CC-BY-NC-4.0": 3}
    out = tmp_path / "out"
    assert (
        (out / "model.safetensors").is_file()
        and (out / "gguf" / "島語-bf16.gguf").is_file()
        and (out / "ollama" / "Modelfile").is_file()
    )
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "qa.jsonl 3" in card and "| culture | 0.9000 | 100 |" in card and "| sft | lr" in card


def test_a_recipes_release_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="non-commercial data"):
        stage(model, tmp_path, license="apache-2.0")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_recipe_names_is_checked_before_it_runs() -> None:
    from twllm.recipe import load_recipe

    for name in ("tiny", "moe"):
        check_release(load_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.toml").recipe)
    named = {"name": "a", "base": {"size": "tiny"}, "sft": {"datasets": [{"path": "a.jsonl", "license": "內部資料"}]}}
    with pytest.raises(UserError, match="unknown licence"):
        check_release(Recipe.model_validate(named))
    check_release(Recipe.model_validate(named | {"release": {"license": "internal"}}))
    check_release(Recipe.model_validate(named | {"release": {"accept": ["unknown"]}}))
    with pytest.raises(UserError, match="unknown type"):
        check_release(Recipe.model_validate(named | {"release": {"license": "internal", "gguf_types": ["q9"]}}))


def test_the_command(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    out = str(tmp_path / "out")
    asked = [
        "export",
        str(model),
        "--out",
        out,
        "--format",
        "gguf",
        "--type",
        "q8_0",
        "--no-scores",
        "--data",
        "百科=cc-by-4.0",
    ]
    result = CliRunner().invoke(app, [*asked, "--push", "lab/chat", "--dry-run"])
    assert result.exit_code == 0 and "島語-q8_0.gguf" in result.stdout and "would send" in result.stdout
    assert "| 百科 |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for wrong in (
        ["--format", "gguff"],
        ["--format", "gguf", "--type", "q9"],
        ["--data", "百科"],
        ["--accept", "everything"],
    ):
        result = CliRunner().invoke(app, ["export", str(model), "--out", str(tmp_path / "no"), *wrong])
        assert isinstance(result.exception, UserError) and not (tmp_path / "no").exists()
