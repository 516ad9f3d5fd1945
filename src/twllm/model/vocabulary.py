"""A model's embedding and head made to fit an extended tokenizer. Old rows are untouched, so old ids keep their logits.

How a new row begins, by `method`:
  average  the mean of all old rows, what transformers does (without its noise): knows nothing, the measure of the others
  mean     the mean of the rows of the tokens that the piece was before
  focus    a mix of old tokens that occur beside the same words (FOCUS, arXiv 2305.14481; vocabulary_init.py)
  fitted   input as `mean`; head rows fitted on what the model thinks just before the piece (ridge regression; vocabulary_init.py)
Rows that fill the table up to a multiple are the mean of all old rows, which no text makes likely (Hewitt 2021).
Measured in dev/LOG.md and docs/models.md. Not covered: heads with a bias, sharded models.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from twllm.errors import UserError, did_you_mean
from twllm.tokens.tokenizer import ChatTokenizer

Method = Literal["average", "mean", "focus", "fitted"]
# V vocabulary, D model width, N new tokens


def resize_vocabulary(
    model: PreTrainedModel, old: ChatTokenizer, new: ChatTokenizer, method: str = "mean", multiple: int = 64, texts: Sequence[str] = ()
) -> dict[str, Any]:  # fmt: skip
    """Change `model` in place. `texts`: what `focus` and `fitted` learn from.

    Raises:
        UserError: the new tokenizer does not go on from the old one, or the method needs texts.
    """
    if method not in get_args(Method):
        raise UserError("沒有這種初始值 (unknown initialisation)", method, did_you_mean(method, get_args(Method)))
    if method in ("focus", "fitted") and not texts:
        raise UserError("這種初始值要有文字 (needs texts)", f"init = {method}", "給 --texts，或改用 mean")
    fresh = new_ids(old, new)
    rows = model.get_input_embeddings().weight.shape[0]
    wanted = max(rows, -(-new.vocab_size // multiple) * multiple)
    heads = _head(model) is not None
    average = {False: _average(model.get_input_embeddings().weight), True: _average(_head(model)) if heads else None}
    table = piece_table(old, new, fresh)
    found = {head: _means(_weight(model, head), table) for head in ((False, True) if heads else (False,))}
    if method == "average":
        found = {head: _row(average[head]).expand(len(fresh), -1) for head in found}
    elif method == "focus":
        from twllm.model.vocabulary_init import focus

        mix, known = focus(new, fresh, texts)
        for head in found:
            mixed = mix @ _weight(model, head)[: mix.shape[1]].float()
            found[head] = torch.where(known[:, None], mixed, found[head])
    elif method == "fitted":
        from twllm.model.vocabulary_init import fitted

        rows_fitted, known = fitted(model, old, new, fresh, texts)
        target = heads  # a tied table serves both ends
        blend = rows_fitted if heads else (rows_fitted + found[False]) / 2
        found[target] = torch.where(known[:, None], blend, found[target])
    if wanted > rows:
        model.resize_token_embeddings(wanted, mean_resizing=False)
    with torch.no_grad():
        for head, values in found.items():
            weight = _weight(model, head)
            weight[rows:] = _row(average[head]).to(weight.dtype)
            weight[torch.tensor(fresh)] = values.to(weight.dtype)
    model.get_input_embeddings().padding_idx = None
    return {"vocab_size": [rows, wanted], "new_tokens": len(fresh), "init": method}


def new_ids(old: ChatTokenizer, new: ChatTokenizer) -> list[int]:
    """Ids that the new tokenizer adds.

    Raises:
        UserError: an old id means something else in the new tokenizer.
    """
    before, after = (t.backend.get_vocab(with_added_tokens=True) for t in (old, new))
    moved = [text for text, id in before.items() if after.get(text) != id]
    if moved:
        raise UserError(
            "新分詞器不是這個模型的擴充 (not an extension of the model's tokenizer)",
            "、".join(moved[:3]),
            "用 twllm tokenizer extend 從模型自己的分詞器擴充",
        )
    return sorted(id for text, id in after.items() if text not in before)


def piece_table(old: ChatTokenizer, new: ChatTokenizer, fresh: Sequence[int]) -> list[list[int]]:
    """For each new token, the old tokens that wrote it; a part of a character by its parts; a control token by its name."""
    added = new.backend.get_added_tokens_decoder()
    byte_level = "ByteLevel" in str(new.backend.decoder)
    parts: dict[str, tuple[str, str]] = {}
    if byte_level:
        import json

        from twllm.tokens.extend_learn import parse_merges

        for left, right in parse_merges(json.loads(new.backend.to_str())["model"]):
            parts.setdefault(left + right, (left, right))
    vocab = old.backend.get_vocab(with_added_tokens=True)

    def spelled(piece: str) -> list[int]:
        if piece in vocab:
            return [vocab[piece]]
        return [id for part in parts.get(piece, ()) for id in spelled(part)]

    table = []
    for id in fresh:
        name = str(new.backend.id_to_token(id))
        if id in added:
            table.append(old.encode(added[id].content))
        elif byte_level:
            table.append(spelled(name))
        else:
            table.append([token.id for token in old.backend.model.tokenize(name)])
    return table


def _means(weight: Tensor, table: Sequence[Sequence[int]]) -> Tensor:
    """Mean row of each list of ids, (N, D) in fp32; of an empty list, of all rows."""
    average = _average(weight)
    rows = [weight[torch.tensor(ids)].detach().float().mean(0) if ids else average for ids in table]
    return torch.stack(rows) if rows else weight.new_zeros(0, weight.shape[1]).float()


def _average(weight: Tensor | None) -> Tensor:
    assert weight is not None
    return weight.detach().float().mean(0)


def _row(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _head(model: PreTrainedModel) -> Tensor | None:
    """The head's weight where it is not the embedding itself."""
    weight: Tensor = model.get_output_embeddings().weight
    return None if weight is model.get_input_embeddings().weight else weight


def _weight(model: PreTrainedModel, head: bool) -> Tensor:
    found: Tensor = model.get_output_embeddings().weight if head else model.get_input_embeddings().weight
    return found
