"""The GGUF file: its numbers read back, and its vocabulary as llama.cpp understands it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import SENTENCES
from tests.serve.engines.checkpoints import checkpoint
from twllm.errors import UserError
from twllm.tokens.tokenizer import ChatTokenizer

gguf = pytest.importorskip("gguf")
from twllm.release.gguf import CUTS, write_gguf  # noqa: E402

TEXTS = [*SENTENCES, "  兩個空格，tab\t 與換行\n\n🏔️砢磣！", "It's 12345 o'clock", "", " "]


def pieces_tokenizer() -> ChatTokenizer:
    """Sentencepiece-like BPE with byte fallback, as Llama-2's in tokenizer.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=names, show_progress=False)
    backend.train_from_iterator(SENTENCES * 4, trainer)
    file = json.loads(backend.to_str())
    file["added_tokens"] = file["added_tokens"][:3]  # bytes are ordinary tokens
    backend = Tokenizer.from_str(json.dumps(file))
    backend.add_tokens([AddedToken("臺灣大學", normalized=False)])
    return ChatTokenizer(backend).with_template("taiwan-llm-v2")


def read(file: Path) -> Any:
    return gguf.GGUFReader(file)


def value(reader: Any, key: str) -> Any:
    return reader.get_field(key).contents()


def test_numbers_names_and_settings(tiny_checkpoint: Path, tmp_path: Path) -> None:
    reader = read(write_gguf(tiny_checkpoint, tmp_path / "new" / "a.gguf", "f16"))
    assert value(reader, "general.architecture") == "llama"
    expected = {
        "block_count": 2,
        "embedding_length": 32,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "context_length": 256,
    }
    assert {key: value(reader, f"llama.{key}") for key in expected} == expected
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * 9 + 3
    assert {t.tensor_type.name for n, t in tensors.items() if "norm" in n} == {"F32"}
    assert {t.tensor_type.name for n, t in tensors.items() if "norm" not in n} == {"F16"}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.gguf"]


def test_every_kind_reads_back(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Rows of queries and keys are reordered within each head, and only these."""
    from safetensors.torch import load_file

    weights = load_file(next(tiny_checkpoint.glob("*.safetensors")))
    key = weights["model.layers.1.self_attn.k_proj.weight"].view(2, 2, 4, 32).transpose(1, 2).reshape(16, 32)
    up = weights["model.layers.1.mlp.up_proj.weight"]
    for kind, tolerance in (("f32", 0.0), ("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 2e-2)):
        reader = read(write_gguf(tiny_checkpoint, tmp_path / "a.gguf", kind))  # type: ignore[arg-type]
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        for name, expected in (("blk.1.attn_k.weight", key), ("blk.1.ffn_up.weight", up)):
            found = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type).reshape(expected.shape)
            assert np.abs(found - expected.numpy()).max() <= tolerance


def test_rows_that_cannot_be_cut_in_blocks(tmp_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    import transformers

    config = transformers.LlamaConfig(vocab_size=600, hidden_size=24, intermediate_size=40, num_hidden_layers=1,
                                      num_attention_heads=2)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="Q8_0"):
        write_gguf(tmp_path, tmp_path / "a.gguf", "q8_0", vocabulary=False)
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob(".*"))


def test_a_vocabulary_without_a_form_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, tiny_tokenizer: ChatTokenizer
) -> None:
    import shutil

    from tokenizers import Tokenizer, pre_tokenizers

    shutil.copytree(tiny_checkpoint, tmp_path / "a")
    backend = Tokenizer.from_str(tiny_tokenizer.backend.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    ChatTokenizer(backend, tiny_tokenizer.template).save(tmp_path / "a")
    with pytest.raises(UserError, match="Punctuation"):
        write_gguf(tmp_path / "a", tmp_path / "a.gguf")
    write_gguf(tmp_path / "a", tmp_path / "a.gguf", vocabulary=False)


def llama_ids(file: Path, text: str) -> list[int]:
    """llama.cpp's own tokenisation, control tokens read as such, no begin token."""
    import ctypes

    import llama_cpp.llama_cpp as lib

    from twllm.serve.engines.cpu.llamacpp import _start

    _start()
    settings = lib.llama_model_default_params()
    settings.vocab_only = True
    model = lib.llama_model_load_from_file(str(file).encode(), settings)
    data = text.encode()
    buffer = (ctypes.c_int32 * 512)()
    count = lib.llama_tokenize(lib.llama_model_get_vocab(model), data, len(data), buffer, 512, False, True)
    lib.llama_model_free(model)
    return list(buffer[:count])


@pytest.mark.parametrize("kind", ["pieces", "gpt-2", "llama-bpe", "qwen2"])
def test_llamacpp_cuts_texts_as_we_do(kind: str, tmp_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    pytest.importorskip("llama_cpp")
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    tokenizer = tiny_tokenizer
    if kind == "pieces":
        tokenizer = pieces_tokenizer()
    elif kind != "gpt-2":
        cut = next(expression for expression, name in CUTS.items() if name == kind)
        backend = Tokenizer.from_str(tiny_tokenizer.backend.to_str())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(cut), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        tokenizer = ChatTokenizer(backend, tiny_tokenizer.template)
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=tokenizer.vocab_size + 5, hidden_size=32, intermediate_size=32,
                                      num_hidden_layers=1, num_attention_heads=2)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    file = write_gguf(tmp_path, tmp_path / "a.gguf", "f32")
    reader = read(file)
    assert len(value(reader, "tokenizer.ggml.tokens")) == tokenizer.vocab_size + 5
    assert value(reader, "tokenizer.chat_template") == tokenizer.template
    assert value(reader, "tokenizer.ggml.eos_token_id") == tokenizer.eos_id
    for text in TEXTS:
        assert llama_ids(file, text) == tokenizer.backend.encode(text, add_special_tokens=False).ids, text
    for text in ("</s>", "你好</s>台灣"):
        assert tokenizer.eos_id in llama_ids(file, text)


def test_the_engines_file_needs_no_tokenizer(tmp_path: Path) -> None:
    checkpoint("qwen3", tmp_path)
    reader = read(write_gguf(tmp_path, tmp_path / "a.gguf", "bf16", vocabulary=False))
    assert value(reader, "tokenizer.ggml.model") == "no_vocab"
    assert value(reader, "general.architecture") == "qwen3"


def test_the_file_says_which_template_is_the_trained_one(tmp_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    """And llama.cpp adds a begin token exactly where the template begins with it."""
    import transformers

    from twllm.model.build import save

    torch.manual_seed(0)
    for name, begins in (("taiwan-llm-v2", True), ("chatml", False)):
        tokenizer = tiny_tokenizer.with_template(name)
        config = transformers.LlamaConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=32,
                                          num_hidden_layers=1, num_attention_heads=2)  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        save(transformers.LlamaForCausalLM(config), tokenizer, folder)
        file = write_gguf(folder, tmp_path / f"{name}.gguf", "f16", facts={"name": "島語", "license": "mit"})
        reader = read(file)
        assert value(reader, "twllm.template_fingerprint") == tokenizer.template_fingerprint
        assert value(reader, "tokenizer.ggml.add_bos_token") is begins
        assert value(reader, "general.name") == "島語"


def own_trained(tmp_path: Path) -> ChatTokenizer:
    from twllm import data
    from twllm.tokens.config import TokenizerConfig
    from twllm.tokens.train import train_tokenizer

    texts = [
        json.loads(line)["text"]
        for file in sorted(data.resolve("twllm:knowledge").glob("*.jsonl"))[:4]
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return train_tokenizer([*texts, "if x:\n    return  y\n\n" * 40], TokenizerConfig(vocab_size=1500), "taiwan-llm-v2")


def test_our_own_bpe_is_cut_as_here(tmp_path: Path) -> None:
    """But for a space left over between longer white space and a word: see OWN in release/gguf.py."""
    pytest.importorskip("llama_cpp")
    import random

    import transformers

    tokenizer = own_trained(tmp_path)
    config = transformers.LlamaConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=32,
                                      num_hidden_layers=1, num_attention_heads=2)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    file = write_gguf(tmp_path, tmp_path / "a.gguf", "f32")
    chance = random.Random(0)
    signs = "台灣，。！「」ㄅㄆˊabXYZ123½ⅣＡ１🧋𠮷é한.,-( "
    fuzz = ["".join(chance.choices(signs, k=40)) for _ in range(60)]
    texts = [*SENTENCES, "if x:\n    return  y\n\n\n\n# 註解 12", *(" ".join(text.split()) for text in fuzz)]
    for text in texts:
        assert llama_ids(file, text) == tokenizer.backend.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("kind", ["pieces", "own", "gpt-2"])
def test_logits_are_those_of_transformers(kind: str, tmp_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    pytest.importorskip("llama_cpp")
    import transformers

    from twllm.serve.engines.batching.runner import Work
    from twllm.serve.engines.cpu.llamacpp import LlamaCppRunner

    tokenizer = {"pieces": pieces_tokenizer, "own": lambda: own_trained(tmp_path)}.get(kind, lambda: tiny_tokenizer)()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=tokenizer.vocab_size + 3, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "m")
    tokenizer.save(tmp_path / "m")
    ids = tokenizer.encode_chat([{"role": "user", "content": SENTENCES[0]}], add_generation_prompt=True).ids
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0, -1]
    runner = LlamaCppRunner(
        write_gguf(tmp_path / "m", tmp_path / "a.gguf", "f32"), precision="fp32", slots=1, threads=1
    )
    try:
        (logits,) = runner.step([Work(0, ids, True)])
    finally:
        runner.close()
    assert logits is not None and float((torch.from_numpy(logits) - expected).abs().max()) < 1e-5


def test_k_quants(tmp_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    pytest.importorskip("llama_cpp")
    import transformers

    from twllm.release.kquants import write_kquant

    config = transformers.LlamaConfig(vocab_size=tiny_tokenizer.vocab_size, hidden_size=256, intermediate_size=256,
                                      num_hidden_layers=1, num_attention_heads=4)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    tiny_tokenizer.save(tmp_path / "m")
    for kind, wanted in (("q4_k_m", "Q4_K"), ("q6_k", "Q6_K")):
        reader = read(write_kquant(tmp_path / "m", tmp_path / "a.gguf", kind, threads=1))
        types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        assert types["blk.0.ffn_up.weight"] == wanted and types["output_norm.weight"] == "F32"
        assert (
            llama_ids(tmp_path / "a.gguf", SENTENCES[0])
            == tiny_tokenizer.backend.encode(SENTENCES[0], add_special_tokens=False).ids
        )
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_another_template_than_the_trained_one_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from twllm.model.build import load, save
    from twllm.tokens.contract import TemplateMismatch

    tokenizer = ChatTokenizer.load(tiny_checkpoint)
    folder = tmp_path / "model"
    folder.mkdir()
    save(load(tiny_checkpoint), tokenizer, folder)
    written = value(read(write_gguf(folder, tmp_path / "good.gguf")), "twllm.template_fingerprint")
    assert written == tokenizer.template_fingerprint
    tokenizer.with_template("taiwan-llm-v1").save(folder)
    with pytest.raises(TemplateMismatch, match="template mismatch"):
        write_gguf(folder, tmp_path / "bad.gguf")
    assert not (tmp_path / "bad.gguf").exists()
    assert write_gguf(folder, tmp_path / "bad.gguf", allow_template_mismatch=True).exists()
