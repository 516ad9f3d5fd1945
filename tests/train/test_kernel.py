"""The C++ attention is the same sum as one masked softmax, forward and backward, whatever the lengths, heads and threads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twllm.tokens.shards import TokenShard, write_shard
from twllm.train import kernel
from twllm.train.attention import document_mask
from twllm.train.data import Batch, PackedData
from twllm.train.execution import attention_form
from twllm.train.machine import Machine

needs_kernel = pytest.mark.skipif(not kernel.can_attend(torch.float32, 16), reason="no compiler, or no AVX512")
E, SCALE = 16, 0.3


@pytest.fixture(params=[0, 12, 70], ids=["no prefix", "prefix", "prefix of two blocks"])
def batch(tmp_path: Path, request: pytest.FixtureRequest) -> Batch:
    """Rows of 300 tokens: documents of 1 to 230 tokens after the shared prefix, so one block and several, full and not."""
    rng = np.random.default_rng(1)
    start = list(range(100, 100 + request.param))
    documents = []
    for i, length in enumerate([230, 129, 64, 32, 31, 1, 2, *rng.integers(3, 60, 8).tolist()]):
        ids = start + rng.integers(200, 300, length).tolist()
        documents.append((str(i), ids, [j > len(start) for j in range(len(ids))] if start else None))
    write_shard(tmp_path / "s", documents, 512)
    data = PackedData([TokenShard(tmp_path / "s")], [1.0], 300, seed=2)
    assert data.prefix == len(start)
    return data.batch(data.epoch_rows(0))


def parts_of(batch: Batch, heads: tuple[int, int], spread: float = 1.0) -> tuple[list[Tensor], Tensor]:
    """Query, key, value, and the gradient of what is found: none where there is padding."""
    torch.manual_seed(0)
    N = batch.ids.numel()
    up = torch.randn(N, heads[0], E)
    up[batch.document.reshape(-1) < 0] = 0
    return [spread * torch.randn(N, H, E) for H in (heads[0], heads[1], heads[1])], up


def through(function: Any, parts: list[Tensor], up: Tensor) -> list[Tensor]:
    """What `function` finds, and the gradients of its inputs, in fp32."""
    leaves = [part.detach().clone().requires_grad_() for part in parts]
    found = function(*leaves)
    found.backward(up.to(found.dtype))
    return [found.detach().float(), *[leaf.grad.float() for leaf in leaves if leaf.grad is not None]]


def exact(batch: Batch) -> Any:
    B, T = batch.ids.shape

    def attend(*parts: Tensor) -> Tensor:
        q, k, v = (x.view(B, T, -1, E).transpose(1, 2) for x in parts)
        mask = document_mask(batch.document)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE, enable_gqa=True)
        return found.transpose(1, 2).reshape(B * T, -1, E)

    return attend


@needs_kernel
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_sum_and_gradients(batch: Batch, heads: tuple[int, int], dtype: torch.dtype) -> None:
    if not kernel.can_attend(dtype, E):
        pytest.skip("this processor does not multiply bf16")
    parts, up = parts_of(batch, heads)
    parts = [part.to(dtype) for part in parts]
    layout, real = kernel.pieces_of(batch), batch.document.reshape(-1) >= 0
    expected = through(exact(batch), [part.float() for part in parts], up)
    found = through(lambda *x: kernel.attend(*x, layout, SCALE), parts, up)
    assert not found[0][~real].any() and not found[1][~real].any()
    allowed = 1e-6 if dtype == torch.float32 else 6e-3
    for mine, reference in zip(found, expected, strict=True):
        assert (mine - reference)[real].norm() < allowed * reference[real].norm()


@needs_kernel
def test_threads_do_not_change_a_bit(batch: Batch) -> None:
    parts, up = parts_of(batch, (4, 2))
    layout, before = kernel.pieces_of(batch), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(through(lambda *x: kernel.attend(*x, layout, SCALE), parts, up))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_kernel
def test_peaked_softmax_and_numbers_that_are_none(batch: Batch) -> None:
    parts, up = parts_of(batch, (2, 2), spread=10.0)
    layout, real = kernel.pieces_of(batch), batch.document.reshape(-1) >= 0
    found = through(lambda *x: kernel.attend(*x, layout, SCALE), parts, up)
    for mine, reference in zip(found, through(exact(batch), parts, up), strict=True):
        assert (mine - reference)[real].norm() < 1e-4 * reference[real].norm()
    parts[0][batch.pieces[0][1] + batch.pieces[0][0] * batch.ids.shape[1], 0, 3] = torch.nan  # a run must notice
    assert kernel.attend(*parts, layout, SCALE).isnan().any()


def test_where_it_cannot_be_had_buckets_do_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine("cpu", "fp32", 1, True, "pieces")
    assert attention_form(machine, True, 24) == "pieces"
    kernel.find_kernel.cache_clear()
    try:
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert attention_form(machine, True, 64) == "pieces" and not kernel.can_attend(torch.float32, 64)
        kernel.find_kernel.cache_clear()
        monkeypatch.setenv("CXX", "false")  # a compiler that fails
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert attention_form(machine, True, 64) == "pieces"
    finally:
        kernel.find_kernel.cache_clear()
