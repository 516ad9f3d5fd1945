"""The planner's memory against what real training steps allocate; the parts of the model that need no step."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from twllm.model.sizes import SIZES, Size
from twllm.planning.gpus import GPUS, find_gpu, recognise
from twllm.planning.memory import HEAD_CHUNK, HEAD_LOGITS, Adapter, Job, step_memory
from twllm.planning.search import HEADROOM, Model, Phase, best_of_each, fewest_gpus, options, pick

ROOT = Path(__file__).parents[2]
BOUND = (0.88, 1.15)  # predicted ÷ measured; docs/plan.md has 108 rows
SMALL = Size(256, 4, 4, 2, 704)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_memory", ROOT / "benchmarks" / "train_memory.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_memory"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("size", "context", "rows", "accumulates", "precision", "checkpointing"),
    [
        (SMALL, 256, 4, True, "fp32", False),
        (SMALL, 256, 4, False, "bf16", False),
        (SMALL, 1024, 1, False, "fp32", True),
        (Size(384, 6, 6, 6, 1024), 256, 2, True, "bf16", True),
    ],
)
def test_predicted_memory_is_what_a_step_allocates(
    benchmark: ModuleType, size: Size, context: int, rows: int, accumulates: bool, precision: str, checkpointing: bool
) -> None:
    job = Job(
        size, 4096, context, rows * context, accumulates, precision, checkpointing=checkpointing, accelerator=False  # type: ignore[arg-type]
    )  # fmt: skip
    ratio = step_memory(job).total / benchmark.allocated_peak(job)
    assert BOUND[0] < ratio < BOUND[1]


def test_checkpointing_really_saves_memory(benchmark: ModuleType) -> None:
    jobs = [Job(SMALL, 512, 256, 1024, precision="fp32", checkpointing=c, accelerator=False) for c in (False, True)]
    kept, again = (benchmark.allocated_peak(job) for job in jobs)
    assert again < 0.75 * kept


def test_chunks_are_those_of_the_loss() -> None:
    from twllm.train import loss

    assert (HEAD_CHUNK, HEAD_LOGITS) == (loss.CHUNK, loss.CHUNK_LOGITS)


def test_llama2_7b_takes_sixteen_bytes_a_parameter_and_what_a_step_adds() -> None:
    memory = step_memory(Job(SIZES["7b"], 32_000, 4096, 4096, checkpointing=True))
    assert 16 * 6.74e9 < memory.weights + memory.gradients + memory.optimizer < 19 * 6.74e9
    quantised = step_memory(Job(SIZES["7b"], 32_000, 2048, 2048, checkpointing=True, adapter=Adapter(64, True)))
    assert 4 * 2**30 < quantised.weights < 5.5 * 2**30 and quantised.total < 12 * 2**30  # QLoRA's 7 B on one card


def test_sharding_divides_what_it_says() -> None:
    whole, two, three = (
        step_memory(Job(SIZES["7b"], 32_000, 4096, 4096, sharding=s, gpus=8)) for s in ("none", "optimizer", "full")
    )
    assert two.optimizer == three.optimizer == whole.optimizer / 8
    assert three.weights < two.weights < whole.weights and three.total < two.total < whole.total


def test_search_finds_what_fits_and_is_fastest() -> None:
    model, phases = Model(SIZES["7b"], 32_000), [Phase("pretrain", 10**9, 4096, 64 * 4096)]
    card = GPUS["h100"]
    limit = card.memory_gib * HEADROOM
    found = options(model, phases, card, 8)
    chosen = pick(found, limit)
    assert chosen and chosen.gib <= limit and chosen.sharding != "none"
    assert chosen.seconds <= 1.01 * min(c.seconds for c in found if c.gib <= limit)
    assert [fits for row, fits in best_of_each(found, limit) if row.sharding == "none"] == [False, False]
    assert pick(options(model, phases, GPUS["4090"], 1), GPUS["4090"].memory_gib * HEADROOM) is None
    assert fewest_gpus(model, phases, card) == 2
    tiny = pick(options(Model(SIZES["tiny"], 4096), [Phase("sft", 10**6, 256, 4096)], card, 8), limit)
    assert tiny and (tiny.sharding, tiny.checkpointing) == ("none", False)


def test_cards_are_found_by_their_short_and_their_own_name() -> None:
    assert find_gpu("RTX 4090") is GPUS["4090"] and recognise("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert recognise("NVIDIA A100-SXM4-40GB") is GPUS["a100-40"] and recognise("Abacus") is None
    with pytest.raises(Exception, match="unknown GPU"):
        find_gpu("h10")
