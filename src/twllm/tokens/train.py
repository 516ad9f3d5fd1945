"""Train a byte-level BPE tokenizer on a corpus, and report characters per token against other tokenizers.

Pre-tokens: runs of Han characters, single digits, Latin words and punctuation with the space before them, line breaks.
A space is never joined to a Han character, so `ASSISTANT: 你好` and `你好` share their pieces. Byte-level means no unknown
characters: a rare Han character costs at most 3 or 4 tokens. Source: GPT-2's byte-level BPE as `tokenizers` implements it.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from twllm.errors import UserError
from twllm.tokens.config import DatasetConfig, TokenizerConfig
from twllm.tokens.tokenizer import ChatTokenizer

PATTERN = r"[\r\n]+|\p{Han}+|\p{N}| ?[\p{L}\p{M}&&[^\p{Han}]]+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"


def new_bpe() -> Tokenizer:
    """An empty byte-level BPE with our normaliser and pre-tokenizer."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, template: str) -> ChatTokenizer:
    """Learn `config.vocab_size` pieces (control tokens included) from the texts.

    Raises:
        UserError: the corpus is too small for that many pieces.
    """
    probe = ChatTokenizer(new_bpe()).with_template(template)
    controls = sorted(probe.controls, key=lambda token: probe.controls[token])
    backend = new_bpe()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=controls,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=config.max_piece_chars * 3,  # byte-level: a Han character is three symbols
        show_progress=False,
    )
    backend.train_from_iterator(_cleaned(texts), trainer)
    tokenizer = ChatTokenizer(backend).with_template(template)
    if tokenizer.vocab_size < config.vocab_size:
        fix = f"把 tokenizer.vocab_size 降到 {tokenizer.vocab_size} 以下，或加入更多文字"
        raise UserError(
            "語料太小，學不出這麼多詞元 (corpus too small for the vocabulary)", f"vocab_size={config.vocab_size}", fix
        )
    return tokenizer


def _cleaned(texts: Iterable[str]) -> Iterator[str]:
    from twllm.tokens.template import clean_text

    return (clean_text(text) for text in texts)


def report(texts: Sequence[str], folders: Sequence[Path | str]) -> list[dict[str, Any]]:
    """Per tokenizer folder: vocabulary size, tokens, characters per token, tokens per 1,000 characters.

    White space counts as a character; no special tokens are added. Higher characters per token = shorter sequences.
    """
    chars = sum(map(len, texts))
    rows = []
    for folder in folders:
        tokenizer = ChatTokenizer.load(folder)
        tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
        rows.append(
            {
                "tokenizer": str(folder),
                "vocab_size": tokenizer.vocab_size,
                "tokens": tokens,
                "chars_per_token": round(chars / max(tokens, 1), 3),
                "tokens_per_1000_chars": round(1000 * tokens / max(chars, 1), 1),
            }
        )
    return rows


def training_texts(
    corpus: Path, datasets: Iterable[DatasetConfig], template: str, max_chars: int = 20_000_000
) -> Iterator[str]:
    """Corpus documents, then the conversations as the template renders them, so that its fixed text costs few tokens.

    Of more than `max_chars` characters of documents (or of conversations), every n-th is taken: learning time grows with
    the text, the pieces hardly change (dev/LOG.md: 387 s for 130 M characters, most of it beyond the first 20 M).
    """
    from twllm.corpus.build import read_documents
    from twllm.tokens.conversation import read_dataset

    yield from every_nth(lambda: (document.text for document in read_documents(corpus)), max_chars)
    probe = ChatTokenizer(new_bpe()).with_template(template)
    controls = re.compile("|".join(map(re.escape, probe.controls)))

    def rendered() -> Iterator[str]:
        for dataset in datasets:
            for conversation in read_dataset(dataset):
                yield controls.sub("", probe.render(conversation.messages).text)

    yield from every_nth(rendered, max_chars)


def every_nth(texts: Callable[[], Iterable[str]], max_chars: int) -> Iterator[str]:
    """All texts, or evenly spaced ones of about `max_chars` characters together (reads the texts twice)."""
    step = -(-sum(map(len, texts())) // max_chars)
    yield from itertools.islice(texts(), 0, None, max(1, step))


def sample_texts(path: Path, max_chars: int = 5_000_000) -> list[str]:
    """Up to `max_chars` characters of text for a report: a built corpus, or .txt, .md, .jsonl(.gz, .zst) files."""
    from twllm.corpus.build import read_documents
    from twllm.corpus.config import CorpusSource
    from twllm.corpus.document import Document
    from twllm.corpus.files import OUTPUT
    from twllm.corpus.read import read_source
    from twllm.errors import require_file

    require_file(path)
    built = path.is_dir() and (path / OUTPUT).exists()
    documents = read_documents(path) if built else read_source(CorpusSource(path=str(path), license="not needed"))
    texts, chars = [], 0
    for document in documents:
        if not isinstance(document, Document):
            continue
        texts.append(document.text)
        chars += len(document.text)
        if chars >= max_chars:
            break
    if not chars:
        raise UserError("沒有文字可比較 (no text)", path, "給一個有內容的檔案或語料資料夾")
    return texts
