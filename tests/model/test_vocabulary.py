"""A checkpoint whose vocabulary is extended: old logits stay, new rows begin informed, and it survives saving, LoRA and GGUF."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.tokens.extend_bases import byte_level_base, corpus, sentencepiece_base
from twllm.errors import UserError
from twllm.model.build import load, save
from twllm.model.vocabulary import new_ids, piece_table, resize_vocabulary
from twllm.tokens.extend import extend_tokenizer
from twllm.tokens.tokenizer import ChatTokenizer

METHODS = ["average", "mean", "focus", "fitted"]
Tokenizers = tuple[ChatTokenizer, ChatTokenizer]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["sentencepiece", "llama-bpe"])
def tokenizers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    folder = tmp_path_factory.mktemp("base")
    base = sentencepiece_base(folder) if request.param == "sentencepiece" else byte_level_base()
    base = base.with_template("taiwan-llm-v2")
    return base, extend_tokenizer(base, corpus(), 700, folder=folder).tokenizer


def dense(tokenizer: ChatTokenizer, *, tied: bool = False, spare: int = 0) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size + spare, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied,
        initializer_range=0.2, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model.eval()(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [False, True])
def test_old_logits_stay(method: str, tied: bool, tokenizers: Tokenizers) -> None:
    old, new = tokenizers
    model = dense(old, tied=tied)
    ids = old.encode("The capital of Taiwan 台灣的首都 def f(x): 12", bos=True)
    before = logits(model, ids)
    facts = resize_vocabulary(model, old, new, method, 64, corpus()[:150])
    after = logits(model, ids)
    assert after.shape[1] == facts["vocab_size"][1] == model.config.vocab_size and after.shape[1] % 64 == 0
    assert float((after[:, : old.vocab_size] - before).abs().max()) <= 1e-6
    assert torch.isfinite(after).all()
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_rows_are_what_they_say(tokenizers: Tokenizers) -> None:
    old, new = tokenizers
    model = dense(old)
    table, head = (
        part.weight.detach().clone() for part in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    resize_vocabulary(model, old, new, "mean", 64)
    fresh = new_ids(old, new)
    pieces = piece_table(old, new, fresh)
    for id, ids in list(zip(fresh, pieces, strict=True))[::50]:
        assert ids and max(ids) < old.vocab_size
        for part, rows in ((model.get_input_embeddings(), table), (model.get_output_embeddings(), head)):
            assert torch.allclose(part.weight[id], rows[ids].mean(0), atol=1e-6)
    padding = model.get_output_embeddings().weight[new.vocab_size :]
    assert torch.allclose(padding, head.mean(0).expand_as(padding), atol=1e-6)
    name = next(id for id in fresh if len(new.decode([id]).strip()) > 1)
    assert old.decode(pieces[fresh.index(name)]).strip() == new.decode([name]).strip()


def test_spare_rows_of_the_base_are_used(tokenizers: Tokenizers) -> None:
    """Qwen's table is larger than its vocabulary: new ids fall on rows that were never trained."""
    old, new = tokenizers
    model = dense(old, spare=2000)
    rows = model.get_input_embeddings().weight.detach().clone()
    facts = resize_vocabulary(model, old, new, "mean", 64)
    assert facts["vocab_size"][0] == facts["vocab_size"][1] == old.vocab_size + 2000
    after = model.get_input_embeddings().weight
    assert torch.equal(after[: old.vocab_size], rows[: old.vocab_size])
    assert not torch.allclose(after[old.vocab_size], rows[old.vocab_size])
    assert torch.equal(after[new.vocab_size :], rows[new.vocab_size :])


def test_fitted_finds_a_linear_head(tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where head rows truly are a linear function of the state before a token, the fit gives a new token that function."""
    from twllm.model import vocabulary_init

    monkeypatch.setattr(vocabulary_init, "RIDGE", 1e-4)
    old, new = tokenizers
    model, texts = dense(old), corpus()[:150]
    fresh, D = new_ids(old, new), 32
    sums, counts = torch.zeros(new.vocab_size, D), torch.zeros(new.vocab_size)
    for ids, hidden, starts in vocabulary_init._read(model, old, new, set(fresh), texts):
        for id, state in [
            *zip(ids[1:].tolist(), hidden[:-1], strict=True),
            *((id, hidden[at - 1]) for id, at in starts),
        ]:
            sums[id] += state
            counts[id] += 1
    means = sums / counts[:, None].clamp_min(1)
    torch.manual_seed(1)
    function = torch.randn(D, D)
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_((means @ function)[: old.vocab_size])
    rows, known = vocabulary_init.fitted(model, old, new, fresh, texts)
    wanted = (means @ function)[torch.tensor(fresh)][known]
    assert int(known.sum()) > 50
    error = (rows[known] - wanted).norm() / (wanted - wanted.mean(0)).norm()
    assert float(error) < 0.5


def test_trains_saves_and_becomes_gguf(tokenizers: Tokenizers, tmp_path: Path) -> None:
    old, new = tokenizers
    model = dense(old)
    resize_vocabulary(model, old, new, "mean", 64)
    ids = torch.tensor([new.encode(corpus()[0])[:64]])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first = model(ids, labels=ids).loss
    first.backward()
    optimizer.step()
    assert float(model(ids, labels=ids).loss.detach()) < float(first.detach())
    save(model, new, tmp_path / "hf")
    read, tokenizer = load(tmp_path / "hf").eval(), ChatTokenizer.load(tmp_path / "hf")
    assert torch.equal(logits(read, ids[0].tolist()), logits(model, ids[0].tolist()))
    assert tokenizer.encode(corpus()[0]) == new.encode(corpus()[0])
    gguf = pytest.importorskip("gguf")
    from twllm.release.gguf import write_gguf

    reader = gguf.GGUFReader(write_gguf(tmp_path / "hf", tmp_path / "a.gguf", "f32"))
    assert len(reader.get_field("tokenizer.ggml.tokens").contents()) == model.config.vocab_size
    found = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    weight = model.get_input_embeddings().weight.detach().numpy()
    assert (found.data.reshape(weight.shape) == weight).all()


def test_command(tokenizers: Tokenizers, tmp_path: Path) -> None:
    from twllm.model.commands import resize

    old, new = tokenizers
    save(dense(old), old, tmp_path / "base")
    new.save(tmp_path / "tokenizer")
    (tmp_path / "a.txt").write_text("\n".join(corpus()[:50]), encoding="utf-8")
    resize(str(tmp_path / "base"), tmp_path / "tokenizer", tmp_path / "out", "focus", tmp_path / "a.txt", 32)
    model = load(tmp_path / "out")
    assert model.config.vocab_size % 32 == 0 and model.config.vocab_size >= new.vocab_size
    assert ChatTokenizer.load(tmp_path / "out").vocab_size == new.vocab_size


def test_survives_a_lora_merge(tokenizers: Tokenizers) -> None:
    peft = pytest.importorskip("peft")
    old, new = tokenizers
    model = dense(old)
    resize_vocabulary(model, old, new, "mean", 64)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    ids = new.encode(corpus()[0])[:40]
    before = logits(adapted, ids)
    merged = adapted.merge_and_unload()
    assert torch.allclose(logits(merged, ids), before, atol=1e-4)
    assert merged.get_input_embeddings().weight.shape[0] == model.config.vocab_size


def test_what_does_not_fit_is_refused(tokenizers: Tokenizers, tiny_tokenizer: ChatTokenizer) -> None:
    old, new = tokenizers
    with pytest.raises(UserError, match="not an extension"):
        resize_vocabulary(dense(old), old, tiny_tokenizer)
    with pytest.raises(UserError, match="needs texts"):
        resize_vocabulary(dense(old), old, new, "focus")
    with pytest.raises(UserError, match="unknown initialisation") as error:
        resize_vocabulary(dense(old), old, new, "fited")
    assert "fitted" in error.value.fix
