"""Extended tokenizers: old ids and other scripts untouched, every new piece reached, nothing lost, read alike by everyone."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokens.extend_bases import CHINESE, ENGLISH, byte_level_base, corpus, sentencepiece_base
from twllm.errors import UserError
from twllm.tokens.extend import Extended, check, extend_tokenizer, unreachable
from twllm.tokens.extend_learn import RUN, learn_pieces, read_base
from twllm.tokens.tokenizer import ChatTokenizer

Pair = tuple[ChatTokenizer, Extended]
OTHERS = [
    *ENGLISH,
    "ひらがな カタカナ",
    "한국어 텍스트 ㄱㄴㄷ",
    "👨‍👩‍👧🏽 🏔️",
    "Ünïcode ˊˇˋ˙ — … “x”",
    "\t\n  \r\n",
    "ไทย",
    "",
]
KINDS = ["sentencepiece", "llama-bpe", "qwen2"]
ADD = 1100


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("base")
    bases = {
        "sentencepiece": sentencepiece_base(folder),
        "llama-bpe": byte_level_base(),
        "qwen2": byte_level_base("qwen2"),
    }
    return {name: (base, extend_tokenizer(base, corpus(), ADD, folder=folder)) for name, base in bases.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_old_ids_and_other_scripts_stay(kind: str, pairs: dict[str, Pair]) -> None:
    base, extended = pairs[kind]
    new = extended.tokenizer
    before, after = (t.backend.get_vocab(with_added_tokens=True) for t in (base, new))
    assert {text: after[text] for text in before} == before
    assert sorted(after.values()) == list(range(base.vocab_size + ADD))
    assert new.controls == base.controls and (new.bos_id, new.eos_id) == (base.bos_id, base.eos_id)
    for text in OTHERS:
        assert new.encode(text) == base.encode(text), text


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_reached_and_save_tokens(kind: str, pairs: dict[str, Pair]) -> None:
    base, extended = pairs[kind]
    assert unreachable(extended) == []
    facts = check(base, extended, corpus())
    assert facts["changed_elsewhere"] == facts["broken_texts"] == 0
    assert facts["speed_up"] > 1.5 and facts["chars_per_token"][1] > facts["chars_per_token"][0]
    text = read_base(base.backend).text
    whole = [shown for piece in extended.pieces if "\ufffd" not in (shown := text(piece.text))]
    assert all(RUN.fullmatch(piece) and len(piece) <= 4 for piece in whole)
    assert sum(len(piece) > 1 for piece in whole) > 20 and sum(len(piece) == 1 for piece in whole) > 20


ODD = st.one_of(
    st.sampled_from("ㄅㄆㄇㄈㄤˊˇˋ˙ㆠ"),
    st.characters(min_codepoint=0x20000, max_codepoint=0x2A6DF),  # Extension B
    st.characters(min_codepoint=0x30000, max_codepoint=0x323AF),  # G, H
    st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF),
    st.characters(min_codepoint=0xFF01, max_codepoint=0xFF5E),  # full-width
    st.sampled_from(list("，。「」！？：；、（）　台灣的首都是臺北")),
    st.sampled_from(["👨‍👩‍👧", "👍🏽", "🏔️", "🇹🇼"]),
    st.sampled_from(list("abz éñ0 9\n\t.,'")),
)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(kind: str, pairs: dict[str, Pair]) -> None:
    base, extended = pairs[kind]

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.lists(ODD, max_size=12).map("".join))
    def whole(text: str) -> None:
        ids = extended.tokenizer.encode(text)
        assert extended.tokenizer.decode(ids) == base.decode(base.encode(text))
        assert len(ids) <= len(base.encode(text))
        stream = extended.tokenizer.stream()
        assert "".join(stream.push(id) for id in ids) + stream.finish() == extended.tokenizer.decode(ids)

    whole()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_everyone_reads_the_folder_alike(kind: str, pairs: dict[str, Pair], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    _, extended = pairs[kind]
    extended.save(tmp_path)
    texts = [*OTHERS, *CHINESE, *corpus()[:20], "𠮷野家 ㄅㄆㄇ 台灣的"]
    expected = [extended.tokenizer.encode(text) for text in texts]
    ours, theirs = ChatTokenizer.load(tmp_path), AutoTokenizer.from_pretrained(str(tmp_path))
    assert [ours.encode(text) for text in texts] == expected
    assert [theirs(text, add_special_tokens=False)["input_ids"] for text in texts] == expected
    assert len(theirs) == ours.vocab_size
    assert (tmp_path / "tokenizer.model").exists() == (kind == "sentencepiece")
    if kind == "sentencepiece":
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
        assert [processor.encode(text) for text in texts] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_llamacpp_cuts_texts_alike(kind: str, pairs: dict[str, Pair], tmp_path: Path) -> None:
    """Extended → GGUF → llama.cpp's own tokenizer."""
    pytest.importorskip("llama_cpp")
    import torch
    import transformers

    from tests.release.test_gguf import llama_ids
    from twllm.release.gguf import write_gguf

    tokenizer = pairs[kind][1].tokenizer
    torch.manual_seed(0)
    size = -(-tokenizer.vocab_size // 64) * 64
    config = transformers.LlamaConfig(vocab_size=size, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                      num_attention_heads=2)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    file = write_gguf(tmp_path, tmp_path / "a.gguf", "f32")
    for text in [*ENGLISH, *CHINESE, *(text[:100] for text in corpus()[:10]), "𠮷野家，「ㄅㄆㄇ」！"]:
        assert llama_ids(file, text) == tokenizer.backend.encode(text, add_special_tokens=False).ids, text


def test_learning_is_exact_and_counts_places() -> None:
    """Characters and joined pieces compete: a pair that always occurs together comes right after its characters."""
    base = read_base(byte_level_base().backend)
    texts = ["龘驫龘驫"] * 10 + ["麤"]
    pieces = learn_pieces(base, texts, 6, min_frequency=2)
    assert [base.text(piece.text) for piece in pieces if "\ufffd" not in base.text(piece.text)][:3] == [
        "龘",
        "驫",
        "龘驫",
    ]
    assert pieces == learn_pieces(base, texts, 6, min_frequency=2)
    with pytest.raises(UserError, match="corpus too small") as error:
        learn_pieces(base, texts, 50, min_frequency=2)
    assert "6" in error.value.fix


def test_other_vocabularies_are_refused() -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(UserError, match="cannot extend"):
        read_base(Tokenizer(models.Unigram([("a", 0.0)])))


def test_command(pairs: dict[str, Pair], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from twllm.tokens.commands import tokenizer_extend

    base, _ = pairs["llama-bpe"]
    base.save(tmp_path / "base")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus()))
    tokenizer_extend(str(tmp_path / "base"), tmp_path / "text.jsonl", tmp_path / "out", add=200)
    facts: dict[str, Any] = json.loads((tmp_path / "out" / "manifest.json").read_text())["metrics"]
    assert facts["vocab_size"] == [base.vocab_size, base.vocab_size + 200]
    assert facts["speed_up"] > 1.2 and facts["unreachable_pieces"] == 0
    assert "speed-up" in capsys.readouterr().out


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore")
def test_llama2_and_mistral(shared_data: Path, tmp_path: Path) -> None:
    """Real sentencepiece models: their protobuf and tokenizer.json agree after the extension, too."""
    import shutil

    root = shared_data / "tokenizers"
    for file in (root / "llama2/tokenizer.model", root / "mistral/src/mistral_common/data/tokenizer.model.v1"):
        folder = tmp_path / file.parts[-2]
        folder.mkdir()
        shutil.copy(file, folder / "tokenizer.model")
        base = ChatTokenizer.load(folder)
        extended = extend_tokenizer(base, corpus(), 1500, folder=folder)
        facts = check(base, extended, corpus())
        assert facts["sentencepiece_differs"] == facts["changed_elsewhere"] == facts["unreachable_pieces"] == 0
        assert facts["speed_up"] > 1.4
