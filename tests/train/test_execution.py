"""All ways to run a model's passes are the same sum: fused layers, attention forms, checkpointing; batches made ahead keep their order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from transformers import PreTrainedModel

from tests.train.test_loop import run_and_kill
from twllm.errors import UserError
from twllm.model.build import load, weights_fingerprint
from twllm.tokens.shards import TokenShard, write_shard
from twllm.train import attention, buckets
from twllm.train.config import MachineConfig
from twllm.train.data import Batch, PackedData
from twllm.train.execution import prepare
from twllm.train.fused import Fused, can_fuse
from twllm.train.loop import Trainer
from twllm.train.loss import head_loss, token_loss
from twllm.train.machine import Machine, keep_freed_memory, resolve_machine
from twllm.train.prefetch import Prefetch

PLAIN = Machine("cpu", "fp32", 1, False, "mask")
SHAPE = (3, 96)


@pytest.fixture(params=[True, False], ids=["prefix", "no prefix"])
def batch(tmp_path: Path, request: pytest.FixtureRequest) -> Batch:
    """Three rows of 96 tokens: documents of 3 to 60 tokens and, with a shared prefix, 12 tokens that all begin with."""
    rng = np.random.default_rng(1)
    start = list(range(40, 52)) if request.param else []
    documents = []
    for i in range(12):
        ids = start + rng.integers(60, 300, int(rng.integers(3, 60))).tolist()
        documents.append((str(i), ids, [j > len(start) for j in range(len(ids))]))
    write_shard(tmp_path / "s", documents, 512)
    data = PackedData([TokenShard(tmp_path / "s")], [1.0], SHAPE[1], seed=2)
    assert data.prefix == len(start)
    return data.batch(data.epoch_rows(0)[: SHAPE[0]])


def result(model: PreTrainedModel, batch: Batch, form: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients."""
    model.train()
    loss, _ = token_loss(model, batch, form)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return float(loss.detach()), found


def same(left: tuple[float, dict[str, Tensor]], right: tuple[float, dict[str, Tensor]]) -> None:
    assert left[0] == pytest.approx(right[0], rel=1e-5)
    assert left[1].keys() == right[1].keys()
    for name, gradient in right[1].items():
        torch.testing.assert_close(
            left[1][name], gradient, rtol=1e-4, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.fixture
def expected(tiny_checkpoint: Path, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """transformers' own layers, one mask."""
    model = load(tiny_checkpoint)
    model.set_attn_implementation("sdpa")
    return result(model, batch, "mask")


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_fused_layers_equal_transformers(
    tiny_checkpoint: Path, batch: Batch, expected: Any, checkpointing: str
) -> None:
    model = load(tiny_checkpoint)
    machine, execution = prepare(model, Machine("cpu", "fp32", 1, False, "pieces", checkpointing), SHAPE)
    assert machine.attention == "pieces" and execution.fused
    same(result(model, batch, "pieces"), expected)
    execution.remove()
    assert all("forward" not in layer.__dict__ for layer in model.model.layers)
    same(result(model, batch, "mask"), expected)


@pytest.mark.filterwarnings("ignore")  # torch.compile warns about itself
def test_traced_regions_equal_transformers(
    tiny_checkpoint: Path, batch: Batch, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Callable[..., Any]] = []
    real = torch.compile

    def through_aot(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled.append(function)
        return real(function, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", through_aot)
    model = load(tiny_checkpoint)
    machine, execution = prepare(model, Machine("cpu", "fp32", 1, True, "mask"), SHAPE)
    assert machine.attention == "pieces" and len(compiled) == 2
    same(result(model, batch, "pieces"), expected)
    execution.remove()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns about itself
def test_compiled_run_resumes_bit_for_bit(tiny_checkpoint: Path, shard: TokenShard, tmp_path: Path) -> None:
    from twllm.train.config import SftConfig

    def trainer(work: str) -> Trainer:
        config = SftConfig(lr=1e-2, batch_tokens=128, context=64, seed=5)
        machine = MachineConfig(threads=1, compile="on", tensorboard=False, checkpoint_every_s=1e-9)
        data = PackedData([shard], [1.0], 64, 5)
        return Trainer("sft", load(tiny_checkpoint), data, config, machine, tmp_path / work, held_out=data)

    whole = trainer("whole")
    whole.run()
    run_and_kill(trainer("parts"), 3)
    resumed = trainer("parts")
    resumed.run()
    assert weights_fingerprint(resumed.model.state_dict()) == weights_fingerprint(whole.model.state_dict())


def test_long_documents_go_through_torchs_kernel(
    tiny_checkpoint: Path, batch: Batch, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "LONGEST", 20)
    assert buckets.layout_of(batch).long
    model = load(tiny_checkpoint)
    model.set_attn_implementation(attention.NAME)
    same(result(model, batch, "pieces"), expected)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_buckets_with_shared_keys_in_bf16(batch: Batch, heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layout, N, E = buckets.layout_of(batch), batch.ids.numel(), 16
    assert len(layout.buckets) > 2
    parts = [torch.randn(N, H, E) for H in (heads[0], heads[1], heads[1])]
    wide = [part.to(torch.bfloat16).float().requires_grad_() for part in parts]
    half = [part.to(torch.bfloat16).requires_grad_() for part in parts]
    up = torch.randn(N, heads[0], E)
    up[batch.document.reshape(-1) < 0] = 0
    B, T = batch.ids.shape
    q, k, v = (x.view(B, T, -1, E).transpose(1, 2) for x in wide)
    mask = attention.document_mask(batch.document)
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    (exact.transpose(1, 2).reshape(N, -1, E) * up).sum().backward()
    found = buckets.bucketed_attention(*half, layout, 0.3)
    (found.float() * up).sum().backward()
    real = batch.document.reshape(-1) >= 0
    assert not found[~real].any()
    torch.testing.assert_close(found[real].float(), exact.transpose(1, 2).reshape(N, -1, E)[real], rtol=0.02, atol=0.02)
    for narrow, reference in zip(half, wide, strict=True):
        assert narrow.grad is not None and reference.grad is not None
        error = (narrow.grad.float() - reference.grad)[real].norm() / reference.grad[real].norm()
        assert error < 0.01


def test_varlen_layout(tiny_checkpoint: Path, batch: Batch, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel needs a GPU; its contract (cumulative lengths, causal from the end) is kept by a loop here."""

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, longest_q: int, longest_k: int, *, scale: float,
        window_size: tuple[int, int], enable_gqa: bool,
    ) -> Tensor:  # fmt: skip
        assert window_size == (-1, 0) and q_ends.dtype == k_ends.dtype == torch.int32
        found = []
        for i in range(len(q_ends) - 1):
            a, b = slice(q_ends[i], q_ends[i + 1]), slice(k_ends[i], k_ends[i + 1])
            length, keys = len(q[a]), len(k[b])
            assert length <= longest_q and keys <= longest_k
            mask = torch.ones(length, keys, dtype=torch.bool).tril(keys - length)
            parts = (x.transpose(0, 1)[None] for x in (q[a], k[b], v[b]))
            one = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
            found.append(one[0].transpose(0, 1))
        return torch.cat(found)

    monkeypatch.setattr(attention.varlen, "varlen_attn", kernel)
    model = load(tiny_checkpoint)
    Fused(model, None)
    model.set_attn_implementation(attention.VARLEN_NAME)
    same(result(model, batch, "varlen"), expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_mask(batch: Batch) -> None:
    """torch has no backward of FlexAttention on a CPU: its forward with our block mask."""
    torch.manual_seed(0)
    B, T = batch.ids.shape
    q, k, v = (torch.randn(B, H, T, 8) for H in (4, 2, 2))
    found = flex_attention(q, k, v, block_mask=attention.block_mask(batch.document), enable_gqa=True)
    mask = attention.document_mask(batch.document)
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    assert isinstance(found, Tensor)
    real = (batch.document >= 0)[:, None, :, None].expand_as(exact)
    torch.testing.assert_close(found[real], exact[real], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_fused_keeps_its_layers(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint)
    assert can_fuse(model)
    biased = torch.nn.Linear(4, 4, bias=True)
    model.model.layers[0].mlp.up_proj = biased
    assert not can_fuse(model)
    machine, execution = prepare(model, Machine("cpu", "fp32", 1, False, "pieces"), SHAPE)
    assert machine.attention == "pieces" and execution.fused is None
    with pytest.raises(UserError, match="selective"):
        prepare(model, Machine("cpu", "fp32", 1, False, "pieces", "selective"), SHAPE)
    with pytest.raises(UserError, match="offload"):
        resolve_machine(MachineConfig(device="cpu", offload=True, threads=1), 0)


def test_head_gradients_are_made_once(tiny_checkpoint: Path) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 8, requires_grad=True), torch.randn(30, 8)
    labels = torch.randint(0, 30, (9,))
    loss = head_loss(hidden, weight, labels) / 3  # a frozen head takes no gradient
    loss.backward(retain_graph=True)
    reference = hidden.detach().clone().requires_grad_()
    (F.cross_entropy(reference @ weight.T, labels, reduction="sum") / 3).backward()
    torch.testing.assert_close(hidden.grad, reference.grad)
    with pytest.raises(RuntimeError, match="one backward"):
        loss.backward()
    with torch.no_grad():
        assert not head_loss(hidden, weight, labels).requires_grad
    assert float(head_loss(hidden[:0], weight, labels[:0]).detach()) == 0.0
    extreme = torch.full((1, 8), 1e3, requires_grad=True)  # p of the label underflows: its logarithm must not
    assert torch.isfinite(head_loss(extreme, weight, labels[:1]))


def test_prefetch_keeps_order_and_errors() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        if step == 3:
            raise ValueError("third")
        return step * 10

    batches = Prefetch(make, steps=5)
    assert [batches(step) for step in (0, 1, 2)] == [0, 10, 20]
    with pytest.raises(ValueError, match="third"):
        batches(3)
    assert batches(1) == 10 and batches(4) == 40  # asked for out of order: made at once
    assert set(made) == {0, 1, 2, 3, 4}


def test_freed_memory_is_kept_on_glibc() -> None:
    import platform

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
