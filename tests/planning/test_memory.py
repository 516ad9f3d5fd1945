"""The planner's memory against what real training steps allocate; the parts of the model that need no step."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from twllm.model.sizes import SIZES, Size
from twllm.planning.commands import machine_file
from twllm.planning.host import host_memory
from twllm.planning.job import Adapter, Job
from twllm.planning.memory import (
    CACHED_LOGITS,
    GPU_HEAD_CHUNK,
    GPU_HEAD_LOGITS,
    HEAD_CHUNK,
    HEAD_LOGITS,
    HEAD_PIECES,
    step_memory,
)
from twllm.planning.search import HEADROOM, Model, Phase, best_of_each, cuts, fewest_gpus, options, pick, search
from twllm.train.gpus import GPUS, find_gpu

ROOT = Path(__file__).parents[2]
BOUND = (0.88, 1.15)  # predicted ÷ measured; docs/plan.md has the rows
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
    ("table", "name", "precision"),
    [
        ("methods", "LoRA r 16", "bf16"),
        ("methods", "DPO", "fp32"),
        ("methods", "老師 15M 重算", "fp32"),
        ("methods", "專家 8 選 2，半寬", "bf16"),
        ("methods", "selective", "fp32"),
        ("methods", "短文 50", "bf16"),
        ("grid", "1.8M", "bf16"),
        ("grid", "15M", "fp32"),
    ],
)
def test_predicted_memory_is_what_a_step_allocates(
    benchmark: ModuleType, table: str, name: str, precision: str
) -> None:
    job = next(job for n, job in getattr(benchmark, table)() if n == name and job.precision == precision)
    ratio = step_memory(job).total / benchmark.allocated_peak(job)
    assert BOUND[0] < ratio < BOUND[1]


def test_checkpointing_really_saves_memory(benchmark: ModuleType) -> None:
    kinds = ("none", "selective", "full")
    jobs = [Job(SMALL, 512, 256, 1024, precision="fp32", checkpointing=c, accelerator=False) for c in kinds]
    kept, half, again = (benchmark.allocated_peak(job) for job in jobs)
    assert again < 0.75 * kept and again < half < kept


def test_a_state_waits_in_the_hosts_memory() -> None:
    host = host_memory(Job(SIZES["7b"], 32_000, 4096, 4096, sharding="full", gpus=8), 8)
    assert host.saving == pytest.approx(12 * 6.738e9, rel=0.01) and host.loading == pytest.approx(
        8 * 4 * 6.738e9, rel=0.01
    )


def test_chunks_are_those_of_the_loss() -> None:
    from twllm.train import loss

    assert (HEAD_CHUNK, HEAD_LOGITS, CACHED_LOGITS) == (loss.CHUNK, loss.CHUNK_LOGITS, loss.CACHED_LOGITS)
    assert (GPU_HEAD_CHUNK, GPU_HEAD_LOGITS) == (loss.GPU_CHUNK, loss.GPU_CHUNK_LOGITS)
    assert loss.PIECES == HEAD_PIECES


def test_llama2_7b_takes_sixteen_bytes_a_parameter_and_what_a_step_adds() -> None:
    memory = step_memory(Job(SIZES["7b"], 32_000, 4096, 4096, checkpointing="full"))
    assert 16 * 6.74e9 < memory.weights + memory.gradients + memory.optimizer < 19 * 6.74e9
    quantised = step_memory(Job(SIZES["7b"], 32_000, 2048, 2048, checkpointing="full", adapter=Adapter(64, True)))
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
    assert chosen and chosen.gib <= limit and chosen.how.sharding != "none"
    assert chosen.seconds <= 1.01 * min(c.seconds for c in found if c.gib <= limit)
    assert [fits for row, fits in best_of_each(found, limit) if row.how.sharding == "none"] == [False] * 3
    assert pick(options(model, phases, GPUS["4090"], 1), GPUS["4090"].memory_gib * HEADROOM) is None
    assert fewest_gpus(model, phases, card) == 2
    tiny = pick(options(Model(SIZES["tiny"], 4096), [Phase("sft", 10**6, 256, 4096)], card, 8), limit)
    assert tiny and tiny.kind == ("none", "none")


def test_rows_are_shared_out_where_nothing_fits_otherwise_or_there_are_too_few() -> None:
    card, model, long = GPUS["a100-40"], Model(SIZES["7b"], 32_000), Phase("sft", 10**8, 32_768, 16 * 32_768)
    limit = card.memory_gib * HEADROOM
    _, chosen = search(model, [long], card, 8, limit)
    assert chosen and chosen.how.cut == 2 and chosen.gib < limit and chosen.how.micro_tokens < 32_768
    assert "context_parallel = 2" in machine_file("a100-40", 8, chosen, "long")
    assert pick(options(model, [long], card, 8), limit) is None
    assert search(model, [replace(long, compares=True)], card, 8, limit)[1] is None
    assert search(model, [replace(long, context=2048)], card, 8, limit)[1].how.cut == 1  # type: ignore[union-attr]
    assert cuts([long], card, 32) == [2, 4, 8]


def test_cards_are_found_by_their_short_name() -> None:
    assert find_gpu("RTX 4090") is GPUS["4090"]
    with pytest.raises(Exception, match="unknown GPU"):
        find_gpu("h10")
