"""What the machine is turned into: cards by the names their drivers give, precision, memory, the yardstick of MFU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from twllm.errors import UserError
from twllm.train import machine
from twllm.train.config import MachineConfig
from twllm.train.gpus import GPUS, recognise
from twllm.train.loop import Trainer
from twllm.train.machine import Machine, grow_segments, measure_peak_tflops, peak_tflops, resolve_machine

NAMES = {  # torch.cuda.get_device_name() → the table's card
    "NVIDIA H200": "h200",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-PCIE-40GB": "a100-40",
    "NVIDIA B200": "b200",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "NVIDIA A10": "a10",
    "NVIDIA RTX A6000": "a6000",
    "NVIDIA GeForce RTX 3090": "3090",
    "NVIDIA GeForce RTX 4090": "4090",
    "NVIDIA GeForce RTX 5090": "5090",
    "AMD Instinct MI300X": "mi300x",
}
OTHERS = (  # their peak is another one, or a part of it
    "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    "NVIDIA H100 NVL", "NVIDIA GH200 480GB", "NVIDIA GB200", "NVIDIA A10G", "NVIDIA L40", "NVIDIA H20", "Tesla T4", "",
)  # fmt: skip


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has a card; nothing is computed on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(machine, "grow_segments", lambda: True)


def test_cards_are_found_by_what_they_call_themselves() -> None:
    assert {name: recognise(name) for name in NAMES} == {name: GPUS[short] for name, short in NAMES.items()}
    assert [recognise(name) for name in OTHERS] == [None] * len(OTHERS)
    assert set(NAMES.values()) == set(GPUS)


def test_the_peak_is_the_makers_in_bf16_and_measured_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["NVIDIA H100 PCIe", "Tesla T4"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: next(names))
    monkeypatch.setattr(machine, "measure_peak_tflops", lambda found: 7.0)
    bf16, fp32 = (Machine("cuda", precision, 1, True, "varlen") for precision in ("bf16", "fp32"))
    assert [peak_tflops(bf16), peak_tflops(bf16), peak_tflops(fp32)] == [756.0, 7.0, 7.0]
    monkeypatch.undo()
    assert 0 < measure_peak_tflops(Machine("cpu", "fp32", 1, False, "pieces"), 0.01) < 1000


def test_cards_without_bf16_products_get_fp32(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_machine(MachineConfig(), 0).precision == "fp32"
    assert resolve_machine(MachineConfig(precision="bf16"), 0).precision == "bf16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    found = resolve_machine(MachineConfig(offload=True), 10**9)
    assert (found.device, found.precision, found.compile, found.offload) == ("cuda", "bf16", True, True)


def test_the_allocator_is_left_to_whoever_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    assert not grow_segments() and not told
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    assert grow_segments() and told == ["expandable_segments:True"]
    monkeypatch.undo()
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")  # the installed torch knows these words


def test_denormal_numbers_are_nothing_while_training_on_a_cpu() -> None:
    torch.set_flush_denormal(False)
    assert float(torch.tensor(2e-38) * 0.25) > 0
    resolve_machine(MachineConfig(device="cpu", threads=1), 0)
    assert float(torch.tensor(2e-38) * 0.25) == 0


def test_a_full_card_says_what_to_change(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(number: int) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nDetails")

    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(trainer, "train_step", step)
    with pytest.raises(UserError, match="out of GPU memory") as found:
        trainer.run()
    assert "micro_batch_tokens" in str(found.value) and "Details" not in str(found.value)
