"""All ways to run a model's passes are the same sum: fused layers, attention forms, checkpointing; batches made ahead keep their order."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import flex_attention
from transformers import PreTrainedModel

from tests.train.test_loop import run_and_kill
from twllm.errors import UserError
from twllm.model.build import load, weights_fingerprint
from twllm.tokens.shards import TokenShard, write_shard
from twllm.train import attention, buckets, execution
from twllm.train.config import MachineConfig
from twllm.train.context import chunk_size, cut
from twllm.train.data import Batch, PackedData
from twllm.train.execution import attention_form, prepare
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


def probabilities(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """(H, queries, keys) of one document: causal from the end."""
    scores = torch.einsum("qhe,khe->hqk", q, k) * scale
    ahead = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + len(k) - len(q))
    return scores.masked_fill(ahead, -torch.inf).softmax(-1)


def documents(q_ends: Tensor, k_ends: Tensor) -> list[tuple[slice, slice]]:
    ends = (zip(x[:-1].tolist(), x[1:].tolist(), strict=True) for x in (q_ends, k_ends))
    return [(slice(*a), slice(*b)) for a, b in zip(*ends, strict=True)]


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, longest_q: int, longest_k: int, dropout: float, causal: bool,
    debug: bool, *, scale: float, window_size_left: int, window_size_right: int, **others: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """aten::_flash_attention_forward for a CPU: what the GPU's kernel demands is asserted, documents go one by one."""
    assert (dropout, causal, window_size_left, window_size_right) == (0.0, True, -1, 0)
    assert {q.dtype} == {k.dtype, v.dtype} and all(x.stride(-1) == 1 and x.shape[-1] % 8 == 0 for x in (q, k, v))
    assert not any(value is not None for value in others.values() if value is not False)
    assert (q_ends[0], q_ends[-1], k_ends[0], k_ends[-1]) == (0, len(q), 0, len(k))
    for ends, longest in ((q_ends, longest_q), (k_ends, longest_k)):
        assert ends.dtype == torch.int32 and ends.is_contiguous() and int(ends.diff().min()) > 0
        assert int(ends.diff().max()) == longest
    wide = [x.float().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (q, k, v)]
    found = [
        torch.einsum("hqk,khe->qhe", probabilities(wide[0][a], wide[1][b], scale), wide[2][b])
        for a, b in documents(q_ends, k_ends)
    ]
    return torch.cat(found).to(q.dtype), torch.zeros(q.shape[1], len(q)), *(torch.zeros(2) for _ in range(3))


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, q_ends: Tensor, k_ends: Tensor, *rest: Any, scale: float,
    **others: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """aten::_flash_attention_backward."""
    assert grad.stride(-1) == 1 and grad.dtype == q.dtype
    G = q.shape[1] // k.shape[1]
    wide = [x.float().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (q, k, v)]
    d_q, d_k, d_v = (torch.zeros_like(x) for x in wide)
    for a, b in documents(q_ends, k_ends):
        p, up = probabilities(wide[0][a], wide[1][b], scale), grad[a].float()
        d_p = torch.einsum("qhe,khe->hqk", up, wide[2][b])
        d_s = p * (d_p - (d_p * p).sum(-1, keepdim=True)) * scale
        d_v[b] = torch.einsum("hqk,qhe->khe", p, up)
        d_q[a] = torch.einsum("hqk,khe->qhe", d_s, wide[1][b])
        d_k[b] = torch.einsum("hqk,qhe->khe", d_s, wide[0][a])
    d_k, d_v = (x.unflatten(1, (-1, G)).sum(2) for x in (d_k, d_v))
    return tuple(x.to(q.dtype) for x in (d_q, d_k, d_v))


@pytest.fixture
def flash() -> Iterator[None]:
    """torch's own `varlen_attn` on a CPU, with the kernels under it replaced: signature, autograd and layout are the real ones."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", flash_forward, "CPU")
    library.impl("_flash_attention_backward", flash_backward, "CPU")
    yield
    library._destroy()


@pytest.mark.filterwarnings("ignore")  # an operator of torch's is given a second home
@pytest.mark.parametrize("fused", [True, False])
def test_varlen_is_the_same_sum(tiny_checkpoint: Path, batch: Batch, expected: Any, flash: None, fused: bool) -> None:
    model = load(tiny_checkpoint)
    if fused:
        Fused(model, None)
    model.set_attn_implementation(attention.VARLEN_NAME)
    assert (attention.VarlenLayout(batch).keys is None) == (batch.prefix == 0)
    same(result(model, batch, "varlen"), expected)
    with torch.autocast("cpu", torch.bfloat16):  # q, k and v reach the kernel in one precision: it asserts that
        loss, gradients = result(model, batch, "varlen")
    assert loss == pytest.approx(expected[0], rel=0.01)
    for name, gradient in expected[1].items():
        assert (gradients[name] - gradient).norm() < 0.05 * gradient.norm(), name


def test_a_row_is_shared_out_without_rest(batch: Batch) -> None:
    """Every token has one owner, every part of a document knows which one it is of."""
    size, seen = 5, dict[int, list[int]]()
    for rank in range(size):
        part = cut(batch, rank, size, None)
        assert part.ids.shape == (len(batch.ids), 2 * chunk_size(SHAPE[1], size)) and part.cut
        for document, (row, start, length) in zip(part.documents, part.pieces, strict=True):
            seen.setdefault(document, []).extend(part.ids[row, start : start + length].tolist())
            assert len(set(part.document[row, start : start + length].tolist())) == 1
    whole = {
        document: batch.ids[row, start : start + length].tolist()
        for document, (row, start, length) in zip(batch.documents, batch.pieces, strict=True)
    }
    assert {document: sorted(ids) for document, ids in seen.items()} == {d: sorted(ids) for d, ids in whole.items()}
    parts = [cut(batch, rank, size, None) for rank in range(size)]
    assert sum(int((part.labels >= 0).sum()) for part in parts) == int((batch.labels >= 0).sum())


def in_parts(batch: Batch, size: int, form: str, parts: list[Tensor], scale: float) -> Tensor:
    """(B, T, H, E): rows shared out among `size` processes, one after the other in this one; query (B, H, T, E), key and value (B, K, T, E)."""
    B, T = batch.ids.shape
    C = chunk_size(T, size)
    columns = [[*range(r * C, r * C + C), *range((2 * size - 1 - r) * C, (2 * size - r) * C)] for r in range(size)]
    q, *whole = (F.pad(part, (0, 0, 0, 2 * size * C - T)) for part in parts)
    mine = [[part[:, :, at] for part in whole] for at in columns]
    told = [torch.cat([x.transpose(1, 2).flatten(0, 1) for x in of]) for of in zip(*mine, strict=True)]
    found = q.new_zeros(B, 2 * size * C, *q.shape[1::2])
    attend = {"each": attention.attend_each, "varlen": attention.attend_varlen}[form]
    for rank, at in enumerate(columns):
        layout = attention.VarlenLayout(cut(batch, rank, size, told))
        found[:, at] = attend(torch.nn.Identity(), q[:, :, at], *mine[rank], None, scale, varlen=layout)[0]
    return found[:, :T]


@pytest.mark.filterwarnings("ignore")  # an operator of torch's is given a second home
@pytest.mark.parametrize(("form", "size"), [("each", 2), ("each", 5), ("varlen", 2), ("varlen", 4)])
def test_rows_shared_out_are_the_same_sum(
    batch: Batch, flash: None, monkeypatch: pytest.MonkeyPatch, form: str, size: int
) -> None:
    monkeypatch.setattr(attention, "gather_keys", lambda key, value, told: told)
    torch.manual_seed(0)
    B, T = batch.ids.shape
    parts = [torch.randn(B, heads, T, 8, requires_grad=True) for heads in (4, 2, 2)]
    found = in_parts(batch, size, form, parts, 0.3)[batch.document >= 0]
    exact = F.scaled_dot_product_attention(*parts, attention.document_mask(batch.document), scale=0.3, enable_gqa=True)
    wanted = exact.transpose(1, 2)[batch.document >= 0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    weights = torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad(found, parts, weights), torch.autograd.grad(wanted, parts, weights), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-6)


@pytest.mark.filterwarnings("ignore")  # torch.compile warns about itself
@pytest.mark.parametrize("fused", [True, False])
def test_flex_is_the_same_sum(
    tiny_checkpoint: Path, batch: Batch, expected: Any, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch refuses FlexAttention's backward on a CPU for want of a kernel; its reference implementation has one."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *parts: None)
    model = load(tiny_checkpoint)
    if fused:
        Fused(model, None)
    model.set_attn_implementation(attention.FLEX_NAME)
    same(result(model, batch, "flex"), expected)


@pytest.mark.parametrize("heads", [(6, 2), (4, 2)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_takes_any_number_of_shared_keys(batch: Batch, heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    T = batch.ids.shape[1]
    q, k, v = (torch.randn(len(batch.ids), H, T, 8) for H in (heads[0], heads[1], heads[1]))
    found, _ = attention.attend_flex(torch.nn.Identity(), q, k, v, attention.block_mask(batch.document), 0.3)
    exact = F.scaled_dot_product_attention(q, k, v, attention.document_mask(batch.document), scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, exact.transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 140, 300])
@pytest.mark.parametrize("T", [512, 700])
def test_block_mask_is_torchs(prefix: int, T: int) -> None:
    """Same blocks, whole ones and partial ones, as torch finds by looking at every place."""
    rng = np.random.default_rng(prefix + T)
    document = torch.full((4, T), -1)
    for row in range(4):
        document[row, :prefix], at, number = 0, prefix, 1
        while at < T - 60 * row:
            length = int(rng.integers(5, 300 if row % 2 else 40))
            document[row, at : at + length], at, number = number, at + length, number + 1
    found, mask = attention.block_mask(document), attention.document_mask(document)[:, 0]
    exact = flex_attention.create_block_mask(lambda b, h, q, k: mask[b, q, k], 4, None, T, T, device="cpu")
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(exact, name)), name
    for name in ("kv", "full_kv", "q", "full_q"):  # what stands after the blocks that count does not matter
        for counts, mine, torchs in zip(
            getattr(exact, f"{name}_num_blocks").flatten(0, 2), getattr(found, f"{name}_indices").flatten(0, 2),
            getattr(exact, f"{name}_indices").flatten(0, 2), strict=True,
        ):  # fmt: skip
            assert torch.equal(mine[:counts], torchs[:counts])
    assert found.seq_lengths == exact.seq_lengths == (T, T)


@pytest.mark.parametrize(
    ("precision", "capability", "fused", "compiled", "width", "form"),
    [
        ("bf16", (9, 0), True, True, 128, "varlen"), ("bf16", (9, 0), False, False, 128, "varlen"), ("bf16", (8, 0), True, True, 64, "varlen"),
        ("bf16", (7, 5), True, True, 128, "flex"), ("fp32", (9, 0), True, True, 128, "flex"), ("bf16", (9, 0), True, True, 100, "flex"),
        ("bf16", (9, 0), True, True, 512, "flex"), ("bf16", (9, 0), False, True, 128, "mask"), ("fp32", (9, 0), True, True, 8, "mask"),
    ],
)  # fmt: skip
def test_form_of_attention_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, precision: str, capability: tuple[int, int], fused: bool, compiled: bool, width: int, form: str
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert attention_form(Machine("cuda", precision, 1, compiled, "mask"), fused, width) == form


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


@pytest.mark.filterwarnings("ignore")  # torch.compile warns about itself
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
@pytest.mark.parametrize("compiled", [True, False])
def test_offload_moves_activations_and_no_weights(
    tiny_checkpoint: Path, batch: Batch, expected: Any, monkeypatch: pytest.MonkeyPatch, checkpointing: str, compiled: bool
) -> None:  # fmt: skip
    """The copies need a GPU; what is copied, and that the sum stays, do not."""
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile_(function, backend="aot_eager", **options)
    )
    moved: list[tuple[int, ...]] = []
    to_host = execution.to_host

    def pretend(tensor: Tensor, stay: Any) -> Any:
        assert to_host(tensor, stay) is tensor  # it is on the host already
        if tuple(tensor.shape) in stay or tensor.nbytes < 1000:
            return tensor
        moved.append(tuple(tensor.shape))
        return tensor.device, tensor.clone()

    monkeypatch.setattr(execution, "to_host", pretend)
    model = load(tiny_checkpoint)
    machine, ready = prepare(model, Machine("cpu", "fp32", 1, compiled, "pieces", checkpointing, offload=True), SHAPE)
    model.train()
    with ready.forward_context():
        loss, _ = token_loss(model, batch, machine.attention)
    loss.backward()
    found = float(loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    same(found, expected)
    weights = {tuple(p.shape) for p in model.parameters()}
    assert moved and not weights & set(moved)
    assert any(np.prod(shape) == np.prod(SHAPE) * 32 for shape in moved)


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
