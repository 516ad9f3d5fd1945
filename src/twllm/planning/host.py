"""Memory of the host beside the cards: loading, states on their way to disk, what is kept there by choice.

Loading: every process reads the whole model in fp32 before its part goes to the card (model/build.py). A state: weights and
moments of what is trained, copied in memory while training goes on (train/state.py), and an average where there is one. Freed memory is
kept by the process (train/machine.py), so the larger of the two counts. At the end process 0 has the whole model again.
"""

from dataclasses import dataclass

from twllm.planning.activations import kept_bytes
from twllm.planning.job import Job

PROCESS_BYTES = (
    3.0 * 2**30
)  # Python, torch, CUDA's libraries, pinned buffers of a process; chosen, about 0.6 measured on CPU without CUDA


@dataclass(frozen=True)
class Host:
    """Bytes in a host's memory, all its processes together."""

    processes: int
    loading: float
    saving: float
    offloaded: float

    @property
    def total(self) -> float:
        """At the fullest moment."""
        return self.processes * PROCESS_BYTES + max(self.loading, self.saving + self.offloaded)


def host_memory(job: Job, processes: int) -> Host:
    """Of a host with so many of the job's processes."""
    loading = 4.0 * (job.parameters + (job.eyes.parameters if job.eyes else 0))
    saving = (12.0 + 4.0 * job.average) * job.trained / job.shards
    offloaded = float(kept_bytes(job)) if job.offload else 0.0
    return Host(processes, processes * loading, processes * saving, processes * offloaded)
