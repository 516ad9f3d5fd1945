"""An extended tokenizer: the base's ids stay, new pieces come after the last of them, new merges after all old ones.

Byte-level BPE gets the learned merges. sentencepiece joins whatever gives the best-scored piece, so there every way to split a
piece becomes a merge, and `tokenizer.model` is written too (its ids are compared with ours). Added tokens of the base become
entries of the model's vocabulary with the ids they had: `tokenizers` would number them anew otherwise.
Measured on real text by `check`: what did not reach its piece, what changed outside the new scripts, what does not decode.
"""

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from twllm.errors import UserError
from twllm.tokens.extend_learn import RUN, Base, Piece, learn_pieces, parse_merges, read_base
from twllm.tokens.tokenizer import ChatTokenizer

SP_MODEL = "tokenizer.model"
NEVER = -1e8  # sentencepiece gives pieces that are never merged a score below


@dataclass(frozen=True)
class Extended:
    """The new tokenizer and its additions; `sentencepiece` is the new tokenizer.model, None where the base has none."""

    tokenizer: ChatTokenizer
    pieces: list[Piece]
    sentencepiece: bytes | None = None

    def save(self, folder: Path) -> None:
        """Write the Hugging Face folder."""
        self.tokenizer.save(folder)
        if self.sentencepiece is not None:
            (folder / SP_MODEL).write_bytes(self.sentencepiece)


def extend_tokenizer(
    base: ChatTokenizer, texts: Iterable[str], add: int, *, folder: Path | None = None, max_chars: int = 4, min_frequency: int = 2
) -> Extended:  # fmt: skip
    """Learn `add` pieces on `texts`; `folder`: where the base's tokenizer.model may lie.

    Raises:
        UserError: a vocabulary that is not BPE, a corpus too small, or a control token that plain text would spell.
    """
    facts = read_base(base.backend)
    pieces = learn_pieces(facts, texts, add, max_chars, min_frequency)
    backend = _build(facts, pieces)
    tokenizer = ChatTokenizer(backend, base.template, base.bos, base.eos, base.pad)
    spelled = [name for name, id in tokenizer.controls.items() if tokenizer.encode(name) == [id]]
    if spelled and not any(base.encode(name) == [base.controls[name]] for name in spelled):
        raise UserError(
            "打字會打出控制詞元 (typed text becomes a control token)", "、".join(spelled[:3]), "換一個分詞器"
        )
    file = folder / SP_MODEL if folder else None
    proto = _sentencepiece(file, tokenizer) if file and file.is_file() and not facts.byte_level else None
    return Extended(tokenizer, pieces, proto)


def _build(base: Base, pieces: list[Piece]) -> Tokenizer:
    file = json.loads(base.backend.to_str())
    model = file["model"]
    vocab: dict[str, int] = model["vocab"]
    for token in file["added_tokens"]:
        vocab.setdefault(token["content"], token["id"])
    new = list(dict.fromkeys(piece.text for piece in pieces if piece.text not in base.vocab))
    start = max(vocab.values()) + 1
    vocab.update({text: start + i for i, text in enumerate(new)})
    merges = parse_merges(model)
    if base.byte_level:
        known = set(merges)
        merges += [piece.parts for piece in pieces if piece.parts and piece.parts not in known]
    else:
        merges = _all_splits(merges, new, vocab)
    model["merges"] = [list(pair) for pair in merges]
    return Tokenizer.from_str(json.dumps(file))


def _all_splits(merges: list[tuple[str, str]], new: list[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Old merges in their order, with the ways to an old piece that new pieces open beside its own; then each new piece's."""
    fresh, done, found = set(new), set(merges), list[tuple[str, str]]()
    for pair in merges:
        found.append(pair)
        if RUN.search(pair[0] + pair[1]):
            opened = [split for split in _splits(pair[0] + pair[1], vocab) if fresh & set(split) and split not in done]
            done.update(opened)
            found += opened
    for text in new:
        found += [split for split in _splits(text, vocab) if split not in done]
    return found


def _splits(text: str, vocab: dict[str, int]) -> list[tuple[str, str]]:
    return [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in vocab and text[i:] in vocab]


def _sentencepiece(file: Path, tokenizer: ChatTokenizer) -> bytes:
    """The base's protobuf with all tokens it lacks, at their ids; a later piece has a lower score, as after training."""
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "upb")
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    by_id = {id: text for text, id in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.backend.get_added_tokens_decoder()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    lowest = min((piece.score for piece in proto.pieces if piece.score > NEVER), default=0.0)
    for number, id in enumerate(range(len(proto.pieces), tokenizer.vocab_size), 1):
        piece = proto.pieces.add()
        piece.piece, piece.score, piece.type = by_id[id], lowest - number, kinds.NORMAL
        if id in added:
            piece.score, piece.type = 0.0, kinds.CONTROL if added[id].special else kinds.USER_DEFINED
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return bytes(proto.SerializeToString())


# -- what holds ---------------------------------------------------------------------------------------------------


def check(base: ChatTokenizer, extended: Extended, texts: Sequence[str]) -> dict[str, Any]:
    """Numbers about the extension on real text; `changed_elsewhere` and `broken_texts` have to be 0.

    `speed_up`: base tokens ÷ new tokens, what generation and training gain where a token costs the same.
    """
    new = extended.tokenizer
    chars = sum(map(len, texts))
    before, after = base.encode_batch(texts), new.encode_batch(texts)
    old, now = sum(map(len, before)), sum(map(len, after))
    elsewhere = [part for part in itertools.islice(_elsewhere(texts), 20_000) if base.encode(part) != new.encode(part)]
    facts = {
        "vocab_size": [base.vocab_size, new.vocab_size],
        "chars_per_token": [round(chars / max(old, 1), 3), round(chars / max(now, 1), 3)],
        "speed_up": round(old / max(now, 1), 3),
        "changed_elsewhere": len(elsewhere),
        "broken_texts": sum(base.decode(a) != new.decode(b) for a, b in zip(before, after, strict=True)),
        "unreachable_pieces": len(unreachable(extended)),
    }
    return facts | ({"sentencepiece_differs": _differs(extended, texts, after)} if extended.sentencepiece else {})


def _elsewhere(texts: Sequence[str]) -> Iterable[str]:
    """What stands between the runs of the new scripts."""
    return (part for text in texts for part in RUN.split(text) if part)


def unreachable(extended: Extended) -> list[str]:
    """New pieces of whole characters that the model does not make of their own text."""
    base = read_base(extended.tokenizer.backend)
    missed = []
    for piece in extended.pieces:
        text = base.text(piece.text)
        if "\ufffd" not in text and [token.value for token in base.backend.model.tokenize(piece.text)] != [piece.text]:
            missed.append(text)
    return missed


def _differs(extended: Extended, texts: Sequence[str], ids: Sequence[list[int]]) -> int:
    """Texts that sentencepiece itself cuts differently with the written tokenizer.model."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=extended.sentencepiece)
    return sum(processor.encode(text) != found for text, found in zip(texts, ids, strict=True))
