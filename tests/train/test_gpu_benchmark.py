"""benchmarks/train_gpu.py where a CPU never gets: a card that is full, a model that fits with adapters only, what RESULT says of the turns."""

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from twllm.model.sizes import SIZES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TURN = {
    "tokens": 1000, "places": 1000, "model_flops": 4e12, "peak_bytes": 2**30, "losses": [3.0], "matmul": 5e13,
    "facts": {"machine": {"attention": "varlen"}},
}  # fmt: skip


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import train_gpu

    return train_gpu


def arguments(benchmark: ModuleType, *given: str) -> argparse.Namespace:
    found: argparse.Namespace = benchmark.parser().parse_args(list(given))
    return found


def test_rows_are_halved_until_they_fit(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, int]] = []

    class Card:
        """Room for two rows."""

        def __init__(self, python: str, script: str, job: dict[str, Any], folder: Path, name: str) -> None:
            self.rows, self.facts = job["batch_tokens"] // job["context"], dict[str, Any]()
            tried.append((self.rows, job["settings"]["per_device_train_batch_size"]))
            (folder / f"{name}.err").write_text("torch.OutOfMemoryError: CUDA out of memory" if self.rows > 2 else "")

        def turn(self, steps: int) -> dict[str, Any]:
            if self.rows > 2:
                raise RuntimeError("ended")
            return {**TURN, "tok_s": 1.0}

        def close(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(benchmark, "Worker", Card)
    runner = benchmark.Runner("trl kept", "train_peers.py", sys.executable, {"context": 64, "settings": {}}, 8)
    assert runner.turn(tmp_path, arguments(benchmark))["tokens"] == 1000
    assert tried == [(8, 8), (4, 4), (2, 2)] and runner.rows == 2


def test_what_is_trained_follows_from_the_card(benchmark: ModuleType, tmp_path: Path) -> None:
    args = arguments(benchmark)
    full, large = benchmark.runners("7b", SIZES["7b"], tmp_path, args, 139.8)
    assert full and {runner.name for runner in large} == {
        "ours kept", "ours selective", "ours recomputed", "trl kept", "trl recomputed"
    }  # fmt: skip
    full, small = benchmark.runners("7b", SIZES["7b"], tmp_path, args, 79.1)
    assert not full and {runner.job["rank"] for runner in small} == {16}
    assert all(runner.rows for runner in large + small)
    liger = [runner.job["settings"] for runner in large if runner.name.startswith("trl")]
    assert [one["gradient_checkpointing"] for one in liger] == [False, True]
    assert all(one["use_liger_kernel"] and one["packing_strategy"] == "bfd" for one in liger)


def test_result_of_the_turns(benchmark: ModuleType) -> None:
    group = [
        benchmark.Runner(name, "", "", {}, 2) for name in ("ours kept", "trl kept", "ours recomputed", "trl recomputed")
    ]
    speeds = {"ours kept": [90.0, 110.0, 100.0], "trl kept": [], "ours recomputed": [60.0], "trl recomputed": [50.0]}
    turns = {name: [{**TURN, "tok_s": speed} for speed in found] for name, found in speeds.items()}
    found = benchmark.summary(True, group, turns, {"peak_tflops": 1.0})
    assert found["runs"]["trl kept"] is None and found["runs"]["ours kept"]["tok_s"] == 100
    assert found["mfu"] == pytest.approx(100 * 4e9 / 1e12)  # tokens/s × FLOPs a token ÷ the maker's peak
    assert (found["ratio_trl"], found["ratio_same_mode"], found["peak_ratio_trl"]) == (2.0, [1.2], 1.0)
    assert benchmark.summary(True, group, turns, {"peak_tflops": None})["peak_tflops"] == 50.0  # measured
