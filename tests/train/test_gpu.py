"""What only a GPU can tell (`pytest -m gpu`): its kernels give the loss and gradients of the plain form, runs resume, and memory stays low.

Skipped without one. TWLLM_TEST_DEVICE=cpu runs the tests that need no kernel on a CPU: it proves these tests, not a GPU.
FlashAttention's backward adds in no fixed order: where a CPU is held to bits, a GPU is held to a stated tolerance.
"""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.train.test_execution import in_parts
from tests.train.test_loop import run_and_kill
from twllm.model.build import load, save
from twllm.tokens.shards import TokenShard, write_shard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train import attention
from twllm.train.attention import IMPLEMENTATIONS, document_mask
from twllm.train.config import MachineConfig, SftConfig
from twllm.train.data import Batch, PackedData
from twllm.train.execution import prepare
from twllm.train.fused import Fused
from twllm.train.loop import Trainer
from twllm.train.loss import head_loss, token_loss
from twllm.train.machine import Machine, measure_peak_tflops, resolve_machine

DEVICE = os.environ.get("TWLLM_TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # torch.compile, Triton and NCCL warn about themselves
]
needs_kernels = pytest.mark.skipif(not ON_GPU, reason="a kernel of the GPU's")
SHAPE = (3, 512)
Result = tuple[float, dict[str, Tensor]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: ChatTokenizer) -> Path:
    """Two layers with heads that the kernels take: 4 of 32, sharing 2 keys."""
    folder = tmp_path_factory.mktemp("gpu") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, bos_token_id=tiny_tokenizer.bos_id, eos_token_id=tiny_tokenizer.eos_id, pad_token_id=None,
        initializer_range=0.1,
    )  # fmt: skip
    save(LlamaForCausalLM(config), tiny_tokenizer, folder)
    return folder


@pytest.fixture(params=[True, False], ids=["prefix", "no prefix"])
def data(tmp_path: Path, request: pytest.FixtureRequest) -> PackedData:
    """Documents of 3 to 300 tokens, with and without a beginning that all share."""
    rng = np.random.default_rng(1)
    start = list(range(40, 60)) if request.param else []
    documents = []
    for i in range(40):
        ids = start + rng.integers(60, 600, int(rng.integers(3, 300))).tolist()
        documents.append((str(i), ids, [j > len(start) for j in range(len(ids))]))
    write_shard(tmp_path / "s", documents, 600)
    return PackedData([TokenShard(tmp_path / "s")], [1.0], SHAPE[1], seed=2)


def result(model: PreTrainedModel, batch: Batch, machine: Machine, execution: Any = None) -> Result:
    """Loss and gradients, in fp32 on the CPU."""
    model.train()
    with execution.forward_context() if execution else nullcontext(), machine.autocast():
        loss, _ = token_loss(model, batch.to(model.device), machine.attention)
    loss.backward()
    found = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return float(loss.detach()), found


def close(left: Result, right: Result, loss: float, gradient: float) -> None:
    """Relative error of the loss and of each gradient's norm."""
    assert left[0] == pytest.approx(right[0], rel=loss)
    assert left[1].keys() == right[1].keys()
    for name, exact in right[1].items():
        error = float((left[1][name] - exact).norm() / exact.norm())
        assert error < gradient, f"{name}: {error:.2e}"


def plain(checkpoint: Path, batch: Batch) -> Result:
    """transformers' layers with one mask, fp32, on the CPU."""
    model = load(checkpoint)
    model.set_attn_implementation("sdpa")
    return result(model, batch, Machine("cpu", "fp32", 1, False, "mask"))


FORMS = [
    pytest.param("varlen", "bf16", 0.01, 0.03, marks=needs_kernels), pytest.param("flex", "bf16", 0.01, 0.03, marks=needs_kernels),
    pytest.param("flex", "fp32", 1e-4, 1e-3, marks=needs_kernels), ("mask", "bf16", 0.01, 0.03), ("mask", "fp32", 1e-4, 1e-3),
]  # fmt: skip


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "transformers"])
@pytest.mark.parametrize(("form", "precision", "loss", "gradient"), FORMS)
def test_attention_is_the_same_sum(
    checkpoint: Path, data: PackedData, form: str, precision: str, loss: float, gradient: float, fused: bool
) -> None:
    batch = data.batch(data.epoch_rows(0)[: SHAPE[0]])
    model = load(checkpoint).to(DEVICE)
    if fused:
        Fused(model, None)
    model.set_attn_implementation(IMPLEMENTATIONS[form])
    found = result(model, batch, Machine(DEVICE, precision, 1, False, form))
    close(found, plain(checkpoint, batch), loss, gradient)


@needs_kernels
def test_rows_shared_out_are_the_same_sum(data: PackedData, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention with more keys than queries, as each of several processes calls it."""
    monkeypatch.setattr(attention, "gather_keys", lambda key, value, told: told)
    batch = data.batch(data.epoch_rows(0)[: SHAPE[0]])
    torch.manual_seed(0)
    exact = [torch.randn(SHAPE[0], heads, SHAPE[1], 32).bfloat16().float().requires_grad_() for heads in (4, 2, 2)]
    parts = [part.detach().to(DEVICE, torch.bfloat16).requires_grad_() for part in exact]
    valid = batch.document >= 0
    found = in_parts(batch.to(torch.device(DEVICE)), 4, "varlen", parts, 0.2)[valid.to(DEVICE)]
    mask = document_mask(batch.document)
    wanted = F.scaled_dot_product_attention(*exact, mask, scale=0.2, enable_gqa=True).transpose(1, 2)[valid]
    weights = torch.randn(wanted.shape).bfloat16()
    gradients = torch.autograd.grad(found, parts, weights.to(DEVICE))
    for mine, theirs in zip(
        (found, *gradients), (wanted, *torch.autograd.grad(wanted, exact, weights.float())), strict=True
    ):
        assert float((mine.float().cpu() - theirs).norm() / theirs.norm()) < 0.02


@pytest.mark.parametrize("offload", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_kernels), False])
def test_a_run_as_the_machine_sets_it_up_is_the_same_sum(
    checkpoint: Path, data: PackedData, compiled: bool, checkpointing: Any, offload: bool
) -> None:
    batch = data.batch(data.epoch_rows(0)[: SHAPE[0]])
    settings = MachineConfig(
        device=DEVICE, checkpointing=checkpointing, offload=offload, compile="on" if compiled else "off"
    )  # type: ignore[arg-type]
    model = load(checkpoint).to(DEVICE)
    machine, execution = prepare(model, resolve_machine(settings, 0), SHAPE)
    assert not ON_GPU or machine.attention == ("varlen" if machine.precision == "bf16" else "flex")
    close(result(model, batch, machine, execution), plain(checkpoint, batch), 0.01, 0.03)


@needs_kernels
def test_checkpointing_and_offload_save_memory(checkpoint: Path, data: PackedData) -> None:
    batch = data.batch(data.epoch_rows(0)[: SHAPE[0]])
    peaks = []
    for checkpointing, offload in (("none", False), ("none", True), ("full", False), ("full", True)):
        model = load(checkpoint).to(DEVICE)
        machine, execution = prepare(
            model, Machine(DEVICE, "bf16", 1, False, "mask", checkpointing, offload), SHAPE
        )  # fmt: skip
        result(model, batch, machine, execution)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result(model, batch, machine, execution)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del model, execution
    kept, moved, again, both = peaks
    assert moved < kept and again < kept and both <= again


@pytest.mark.parametrize("vocab", [32_000, 128_256])
def test_logits_never_stand_whole(vocab: int) -> None:
    torch.manual_seed(0)
    N, D = (8192, 64) if ON_GPU else (64, 64)
    hidden, weight = (torch.randn(n, D, device=DEVICE, requires_grad=True) for n in (N, vocab))
    labels = torch.randint(0, vocab, (N,), device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        head_loss(hidden, weight, labels).backward()
    if ON_GPU:
        assert torch.cuda.max_memory_allocated() - before < 0.5 * 4 * N * vocab  # half of whole fp32 logits
    assert hidden.grad is not None and weight.grad is not None
    got = hidden.grad[:8].clone(), weight.grad[labels[:8]].clone()
    hidden.grad = weight.grad = None
    total = sum(
        torch.nn.functional.cross_entropy(h @ weight.T, y, reduction="sum")
        for h, y in zip(hidden.split(512), labels.split(512), strict=True)
    )
    assert isinstance(total, Tensor)
    total.backward()
    for mine, exact in zip(got, (hidden.grad[:8], weight.grad[labels[:8]]), strict=True):
        assert float((mine - exact).norm() / exact.norm()) < 0.02


def trainer(checkpoint: Path, data: PackedData, work: Path, **settings: Any) -> Trainer:
    """Four optimizer steps of two micro-batches."""
    config = SftConfig.model_validate(
        {"lr": 1e-3, "batch_tokens": 2048, "context": 512, "seed": 5, "epochs": 4, "max_tokens": 8192, **settings}
    )
    machine = MachineConfig(
        device=DEVICE, tensorboard=False, checkpoint_every_s=1e-9, micro_batch_tokens=1024, compile="off"
    )  # type: ignore[arg-type]
    return Trainer("sft", load(checkpoint), data, config, machine, work, held_out=data)


LORA = {"lora": {"r": 8, "targets": "all-linear"}}


@pytest.mark.parametrize("method", [{}, LORA, {"lora": {"r": 8, "quantise": "nf4"}}], ids=["full", "lora", "qlora"])
def test_a_run_learns_and_resumes_to_a_tolerance(
    checkpoint: Path, data: PackedData, tmp_path: Path, method: dict[str, Any]
) -> None:
    if method.get("lora", {}).get("quantise"):
        pytest.importorskip("bitsandbytes")
    whole = trainer(checkpoint, data, tmp_path / "whole", **method)
    before = whole.evaluate()["held_out_loss"]
    metrics = whole.run()
    assert metrics["held_out_loss"] < before
    run_and_kill(trainer(checkpoint, data, tmp_path / "parts", **method), 2)
    resumed = trainer(checkpoint, data, tmp_path / "parts", **method)
    assert resumed.run()["resumed_at"] == 2
    trained = {name: p for name, p in whole.model.named_parameters() if p.requires_grad}
    for name, p in resumed.model.named_parameters():
        if p.requires_grad:  # Adam turns a gradient's last bit into a step: of at most lr each
            assert float((p - trained[name]).abs().max()) < 4e-3, name
            assert float((p - trained[name]).norm()) < 0.02 * float(trained[name].norm()) + 1e-6, name


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("sharding", ["none", "optimizer", "full"])
def test_fsdp_with_one_rank_is_the_same_sum(
    checkpoint: Path, data: PackedData, sharding: Any, checkpointing: Any, tmp_path: Path
) -> None:
    """NCCL's collectives among one; several ranks are test_parallel.py's (gloo)."""
    import torch.distributed as dist

    from twllm.train import distributed
    from twllm.train.parallel import Parallel, full, inside

    batch = data.batch(data.epoch_rows(0)[: SHAPE[0]])
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if ON_GPU else "gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )  # fmt: skip
    try:
        settings = MachineConfig(device=DEVICE, sharding=sharding, checkpointing=checkpointing, compile="off")
        model = load(checkpoint).to(DEVICE)
        machine, _ = prepare(model, resolve_machine(settings, 0), SHAPE)
        parallel = Parallel(settings)
        parallel._lay_out(1)
        parallel.split(model, machine)
        model.train()
        with machine.autocast():
            loss, _ = inside(model, token_loss, model, batch.to(torch.device(DEVICE)), machine.attention)
        loss.backward()
        gradients = {name: full(p.grad).float().cpu() for name, p in model.named_parameters() if p.grad is not None}
        close((float(loss.detach()), gradients), plain(checkpoint, batch), 0.01, 0.06)  # weights and residuals in bf16
        parallel.gather(model)
        assert all(type(p) is torch.nn.Parameter for p in model.parameters())
    finally:
        distributed.stop()


def test_the_torch_engine_answers(checkpoint: Path) -> None:
    """Greedy answers are transformers' own, but for ties within rounding."""
    from twllm.serve.engines.interface import Sampling
    from twllm.serve.engines.torch.engine import TorchEngine

    engine = TorchEngine(checkpoint, precision="fp32", threads=1)
    try:
        assert next(engine.model.parameters()).device.type == DEVICE
        prompts = [[0, 5, 9, 33, 70], [0, 8, 8, 2, 90, 91, 92], list(range(60, 120))]
        found = engine.generate_batch(prompts, Sampling(temperature=0.0, max_tokens=12))
        model = load(checkpoint)
        for prompt, answer in zip(prompts, found, strict=True):
            assert answer
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
            assert torch.all(logits.max(-1).values - chosen < 1e-2)
    finally:
        engine.close()


@needs_kernels
def test_what_the_card_says_about_itself() -> None:
    machine = resolve_machine(MachineConfig(), 10**9)
    assert machine.device == "cuda" and machine.compile
    assert 0.1 < measure_peak_tflops(machine, 0.2) < 5000
