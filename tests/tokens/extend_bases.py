"""Small real base tokenizers, one sentencepiece-BPE and one byte-level, that know little Chinese."""

import io
from functools import cache
from pathlib import Path

from twllm import data
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.tokens.train import sample_texts

ENGLISH = [
    "The capital of Taiwan is Taipei, and the highest mountain is Jade Mountain.",
    "def add(left, right):\n    return left + right  # 1234 + 5678",
    "It's a test; don't cut words where the base didn't. naïve façade Ünïcode",
    'for (int i = 0; i < 10; ++i) { printf("%d\\n", i); }',
]
CHINESE = ["台灣的首都是台北。", "我們在學校學注音ㄅㄆㄇㄈ。", "請問捷運站在哪裡？"]


@cache
def corpus() -> tuple[str, ...]:
    """Texts that ship with the package."""
    return tuple(sample_texts(data.resolve("twllm:knowledge"), 60_000))


def sentencepiece_base(folder: Path) -> ChatTokenizer:
    """As Llama-2's: only tokenizer.model and its settings."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*ENGLISH, *CHINESE] * 20), model_writer=model, model_type="bpe", vocab_size=460,
        byte_fallback=True, character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, minloglevel=9,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}')
    return ChatTokenizer.load(folder)


def byte_level_base(cut: str = "llama-bpe") -> ChatTokenizer:
    """As Llama-3's (or Qwen's): control tokens after the vocabulary's end, whole words taken without merging."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    from twllm.release.gguf import CUTS

    backend = Tokenizer(models.BPE(ignore_merges=cut == "llama-bpe"))
    if cut == "qwen2":
        backend.normalizer = normalizers.NFC()
    expression = next(expression for expression, name in CUTS.items() if name == cut)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(expression), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([*ENGLISH, *CHINESE] * 4, trainer)
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>")
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return ChatTokenizer(backend, bos=names[0], eos=names[1])
