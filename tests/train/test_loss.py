"""The loss on packed rows equals transformers' own loss on each document alone."""

from pathlib import Path

import pytest
import torch

from twllm.errors import UserError
from twllm.model.build import load
from twllm.tokens.shards import TokenShard, write_shard
from twllm.train.attention import NAME
from twllm.train.data import PackedData
from twllm.train.loss import check_model, head_loss, token_loss

DOCUMENTS = [
    ([0, 5, 9, 33, 70, 1], [False, False, True, True, True, True]),
    ([0, 8, 8, 8, 2, 90, 91, 92, 1], [True] * 9),
    ([0, 300, 301, 1], [False, False, False, True]),
]


@pytest.fixture
def data(tmp_path: Path) -> PackedData:
    write_shard(tmp_path / "s", [(f"文件{i}", ids, mask) for i, (ids, mask) in enumerate(DOCUMENTS)], 512)
    return PackedData([TokenShard(tmp_path / "s")], [1.0], context=16, seed=3)


def alone(model: torch.nn.Module) -> tuple[float, torch.Tensor]:
    """Summed loss and embedding gradient, one document at a time through transformers' ordinary forward."""
    total = torch.zeros(())
    for ids, mask in DOCUMENTS:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        labels = torch.tensor([i if m else -100 for i, m in zip(ids, mask, strict=True)])[1:]
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
    total.backward()
    gradient = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    return float(total.detach()), gradient


@pytest.mark.parametrize("form", ["mask", "pieces"])
def test_packed_equals_alone(tiny_checkpoint: Path, data: PackedData, form: str) -> None:
    model = load(tiny_checkpoint)
    expected, gradient = alone(model)
    model.set_attn_implementation(NAME if form == "pieces" else "sdpa")
    batch = data.batch(data.epoch_rows(0))
    assert len(data.epoch_rows(0)) == 2  # 6 + 9 in one row of 16, or 9 + 4: documents do share a row
    loss, labelled = token_loss(model, batch, form)
    loss.backward()
    assert labelled == 4 + 8 + 1
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, gradient, rtol=1e-4, atol=1e-5)


PREFIX = [0, 40, 41, 42, 43, 44, 45, 46, 47, 48]
CHATS = [  # one system text, then different questions; the loss begins later
    ([*PREFIX, 5, 9, 33, 70, 1], [False] * 12 + [True] * 3),
    ([*PREFIX, 8, 8, 2, 90, 91, 92, 1], [False] * 13 + [True] * 4),
    ([*PREFIX, 300, 301, 1], [False] * 11 + [True] * 2),
    ([*PREFIX, 5, 301, 1, 7, 7, 20, 21, 1], [False] * 11 + [True] * 2 + [False] * 2 + [True] * 3),
]


@pytest.mark.parametrize("form", ["mask", "pieces"])
def test_a_shared_prefix_is_computed_once_and_changes_nothing(
    tiny_checkpoint: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "s", [(f"對話{i}", ids, mask) for i, (ids, mask) in enumerate(CHATS)], 512)
    data = PackedData([TokenShard(tmp_path / "s")], [1.0], context=26, seed=3)
    assert data.prefix == 10
    rows = data.epoch_rows(0)
    assert len(rows) == 2 and data.num_document_tokens(rows) == sum(len(ids) for ids, _ in CHATS)
    model = load(tiny_checkpoint)
    monkeypatch.setattr("tests.train.test_loss.DOCUMENTS", CHATS)
    expected, gradient = alone(model)
    model.set_attn_implementation(NAME if form == "pieces" else "sdpa")
    loss, labelled = token_loss(model, data.batch(rows), form)
    loss.backward()
    assert labelled == 3 + 4 + 2 + 5
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, gradient, rtol=1e-4, atol=1e-5)


def test_no_prefix_is_shared_where_it_is_learned_or_cut(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", [(str(i), ids, None) for i, (ids, _) in enumerate(CHATS)], 512)
    assert PackedData([TokenShard(tmp_path / "s")], [1.0], context=26, seed=3).prefix == 0
    write_shard(tmp_path / "t", [(str(i), ids, mask) for i, (ids, mask) in enumerate(CHATS)], 512)
    assert PackedData([TokenShard(tmp_path / "t")], [1.0], context=16, seed=3).prefix == 0


def test_head_in_chunks_is_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    labels = torch.randint(0, 30, (50,))
    whole = head_loss(hidden, weight, labels)
    whole.backward()
    gradient, weight.grad, hidden.grad = weight.grad, None, None
    monkeypatch.setattr("twllm.train.loss.CHUNK", 7)
    chunked = head_loss(hidden, weight, labels)
    chunked.backward()
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(weight.grad, gradient)


@pytest.mark.parametrize("change", [{"final_logit_softcapping": 30.0}, {"sliding_window": 8}])
def test_models_we_would_train_wrongly_are_refused(tiny_checkpoint: Path, change: dict[str, float]) -> None:
    model = load(tiny_checkpoint)
    check_model(model, 64)
    for key, value in change.items():
        setattr(model.config, key, value)
    with pytest.raises(UserError, match=next(iter(change))):
        check_model(model, 64)
    if "sliding_window" in change:
        check_model(model, 8)  # no document reaches past it


def head_peak(tokens: int, whole: bool, vocab: int = 128_256) -> int:
    """Bytes that forward and backward of the head hold at their fullest, by the allocator's record."""
    from torch.profiler import ProfilerActivity, profile

    hidden, weight = torch.randn(tokens, 16, requires_grad=True), torch.randn(vocab, 16, requires_grad=True)
    labels = torch.randint(0, vocab, (tokens,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        if whole:
            torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum").backward()
        else:
            head_loss(hidden, weight, labels).backward()
    now = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        now += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, now)
    return peak


def test_memory_of_a_128k_vocabulary_does_not_grow_with_the_tokens() -> None:
    """Widths are small, so that logits are all there is to see: a chunk's, whatever the context."""
    torch.manual_seed(0)
    short, long = head_peak(600, whole=False), head_peak(1200, whole=False)
    assert long - short < 2_000_000  # hidden states and labels of 600 tokens; their logits would be 308 MB
    assert long < head_peak(400, whole=True)
