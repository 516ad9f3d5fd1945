"""What the workers of train_speed.py and train_gpu.py measure alike; imports nothing of twllm, a peer's environment has none."""

import resource


def wait() -> None:
    """Until the GPU, where there is one, has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory(reset: bool = False) -> dict[str, int]:
    """Most bytes allocated on the GPU since the last `reset` (and reserved, with what the allocator keeps), else resident ever."""
    import torch

    if not torch.cuda.is_available():
        return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
