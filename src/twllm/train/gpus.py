"""What a card has: memory, bf16 matrix peak, memory and link speed, as its maker states them. The one table of the planner and of MFU.

Peaks are dense (without sparsity) bf16 with fp32 accumulation. Sources: NVIDIA's data sheets and architecture papers (H100, H200,
B200: HGX tables; A100, A10, L4, L40S, RTX A6000: product data sheets; RTX 3090/4090/5090: GA102, AD102 and GB202 white papers, appendix
tables) and AMD's MI300X data sheet. Links are one direction: NVLink where the board has it, else PCIe; NETWORK_GB_S is what a host's
GPUs get each, one 400 Gb/s port a GPU in a DGX/HGX H100 pod. Not one of these numbers was measured here.
A card is recognised by its whole name only: laptop, "Ti", "D", MIG and Grace versions have other peaks, and are measured instead (machine.py).
"""

from dataclasses import dataclass

from twllm.errors import UserError, did_you_mean

GIB = 2**30
NETWORK_GB_S = 50.0
MAKERS = ("NVIDIA ", "AMD ", "Instinct ", "GeForce ")  # what drivers put before a card's name, in this order


@dataclass(frozen=True)
class Gpu:
    """One kind of card."""

    name: str
    memory_gib: float  # what a program may allocate, a little under the number on the box
    peak_tflops: float  # dense bf16
    memory_gb_s: float
    link_gb_s: float
    per_host: int = 8
    calls_itself: tuple[str, ...] = ()  # torch.cuda.get_device_name() without the maker


H100_SXM = ("H100 80GB HBM3", "H100 SXM5", "H800")
A100_SXM = ("A100-SXM4-80GB", "A100-SXM-80GB", "A100 80GB PCIe", "A100-PCIE-80GB", "A800-SXM4-80GB", "A800 80GB PCIe")
A100_40 = ("A100-SXM4-40GB", "A100-SXM-40GB", "A100-PCIE-40GB")
GPUS = {
    "b200": Gpu("NVIDIA B200", 178.0, 2250.0, 8000.0, 900.0, calls_itself=("B200",)),
    "h200": Gpu("NVIDIA H200", 139.8, 989.0, 4800.0, 450.0, calls_itself=("H200",)),
    "h100": Gpu("NVIDIA H100 SXM 80 GB", 79.1, 989.0, 3350.0, 450.0, calls_itself=H100_SXM),
    "h100-pcie": Gpu("NVIDIA H100 PCIe 80 GB", 79.1, 756.0, 2000.0, 64.0, calls_itself=("H100 PCIe", "H100 80GB HBM2e")),
    "a100": Gpu("NVIDIA A100 SXM 80 GB", 79.1, 312.0, 2039.0, 300.0, calls_itself=A100_SXM),
    "a100-40": Gpu("NVIDIA A100 SXM 40 GB", 39.4, 312.0, 1555.0, 300.0, calls_itself=A100_40),
    "mi300x": Gpu("AMD MI300X", 191.0, 1307.0, 5300.0, 448.0, calls_itself=("MI300X", "MI300X OAM")),
    "l40s": Gpu("NVIDIA L40S", 44.4, 362.0, 864.0, 32.0, calls_itself=("L40S",)),
    "a6000": Gpu("NVIDIA RTX A6000", 47.4, 154.8, 768.0, 56.0, 4, ("RTX A6000",)),
    "5090": Gpu("NVIDIA GeForce RTX 5090", 31.3, 209.5, 1792.0, 64.0, 2, ("RTX 5090",)),
    "4090": Gpu("NVIDIA GeForce RTX 4090", 23.5, 165.2, 1008.0, 32.0, 2, ("RTX 4090",)),
    "3090": Gpu("NVIDIA GeForce RTX 3090", 23.6, 71.0, 936.0, 32.0, 2, ("RTX 3090",)),
    "a10": Gpu("NVIDIA A10", 22.0, 125.0, 600.0, 32.0, 4, ("A10",)),
    "l4": Gpu("NVIDIA L4", 22.0, 121.0, 300.0, 32.0, calls_itself=("L4",)),
}  # fmt: skip


def find_gpu(name: str) -> Gpu:
    """The card of this short name.

    Raises:
        UserError: a card that is not in the table.
    """
    key = name.lower().removeprefix("rtx").strip(" -")
    if key not in GPUS:
        raise UserError("表裡沒有這張卡 (unknown GPU)", name, did_you_mean(key, GPUS))
    return GPUS[key]


def recognise(device_name: str) -> Gpu | None:
    """The card that calls itself this (torch.cuda.get_device_name); None: not in the table, or a variant of one."""
    for maker in MAKERS:
        device_name = device_name.removeprefix(maker)
    return next((gpu for gpu in GPUS.values() if device_name in gpu.calls_itself), None)
