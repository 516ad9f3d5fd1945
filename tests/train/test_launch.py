"""Launchers: a Slurm script really starts two torchrun hosts that train one model; DeepSpeed's numbers; wrong launches are told."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.conftest import SENTENCES
from tests.train.ranks import free_port
from twllm.errors import UserError
from twllm.recipe import load_machine
from twllm.train.config import FeedbackConfig, MachineConfig, SftConfig
from twllm.train.context import check_phase
from twllm.train.distributed import check_gpus, launched
from twllm.train.launch import as_deepspeed, slurm
from twllm.train.ledger import tell

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
FULL = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "1",
}
FAKE = {  # what the script needs of Slurm; srun starts a torchrun for each of two "hosts" and fails if one of them does
    "scontrol": "#!/bin/bash\necho 127.0.0.1\necho 127.0.0.1\n",
    "sbatch": '#!/bin/bash\necho "Submitted batch job 7"\nexec bash "$1" > "$LOG" 2>&1\n',
    "srun": '#!/bin/bash\nshift\n"$@" & one=$!\n"$@" & two=$!\nwait $one && wait $two\n',
}


RECIPE = """
name = "small"
[base]
model = "{model}"
[tokenizer]
method = "keep"
[template]
name = "taiwan-llm-v2"
[[corpus.sources]]
path = "{texts}"
license = "CC-BY-4.0"
[pretrain]
batch_tokens = 256
context = 64
max_tokens = 1024
[sft]
enabled = false
[feedback]
enabled = false
"""


def test_a_slurm_script_starts_two_hosts_that_train_one_model(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in FAKE.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    machine, recipe, texts = tmp_path / "cpu.toml", tmp_path / "small.toml", tmp_path / "texts.jsonl"
    machine.write_text('device = "cpu"\nthreads = 1\nsharding = "full"\ntensorboard = false\nprecision = "fp32"\n')
    rows = [{"id": f"{i}", "text": SENTENCES[i % 3] * (1 + i // 3) + f"{i}。"} for i in range(12)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe.write_text(RECIPE.format(model=tiny_checkpoint, texts=texts))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_JOB_ID", str(free_port() - 20000))
    slurm(
        recipe, nodes=2, gpus_per_node=1, machine=machine, out=tmp_path / "run", script=tmp_path / "job.sh", until="pretrain", submit=True,
        cpu=True, set_=["corpus.steps=[]"], sbatch=["--partition=cpu"], torchrun=f"{sys.executable} -m torch.distributed.run",
    )  # fmt: skip
    told = (tmp_path / "log").read_text()
    assert "Submitted batch job 7" in capsys.readouterr().out, told
    assert "#SBATCH --partition=cpu\n" in (tmp_path / "job.sh").read_text()
    manifest = json.loads((tmp_path / "run" / "pretrain" / "manifest.json").read_text())
    assert manifest["metrics"]["processes"] == {"sharding": "full", "replicate": 1, "shard": 2, "tensor": 1}
    assert (tmp_path / "run" / "pretrain" / "model.safetensors").is_file()
    assert not list((tmp_path / "run").glob(".seen-*"))  # the mark by which the hosts know that they share the folder
    tell(tmp_path / "run" / "pretrain", 1, None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1 and not lines[1].endswith("?")


def test_deepspeed_takes_the_recipes_numbers() -> None:
    phase = SftConfig(batch_tokens=64 * 1024, context=1024, lr=2e-5, clip=0.5)
    made = as_deepspeed(phase, MachineConfig(sharding="optimizer", micro_batch_tokens=4096), 8)
    assert (
        made["train_batch_size"]
        == 64
        == made["train_micro_batch_size_per_gpu"] * made["gradient_accumulation_steps"] * 8
    )
    assert (made["train_micro_batch_size_per_gpu"], made["zero_optimization"]["stage"], made["gradient_clipping"]) == (
        4,
        2,
        0.5,
    )
    with pytest.raises(UserError, match="64 列"):
        as_deepspeed(phase, load_machine(None), 48)
    with pytest.raises(UserError, match="context_parallel"):
        as_deepspeed(phase, MachineConfig(context_parallel=2), 8)
    with pytest.raises(ValueError, match="not together"):
        MachineConfig(context_parallel=2, tensor_parallel=2)
    for refused in (SftConfig(neftune_alpha=5.0), FeedbackConfig(method="dpo")):
        with pytest.raises(UserError, match="no context parallel"):
            check_phase("a phase", refused)


def test_a_wrong_launch_is_told() -> None:
    assert not launched({}) and launched(FULL) and not launched({**FULL, "WORLD_SIZE": "1"})
    with pytest.raises(UserError, match="MASTER_ADDR"):
        launched({name: value for name, value in FULL.items() if name != "MASTER_ADDR"})
    with pytest.raises(UserError, match="srun"):
        launched({"SLURM_STEP_NUM_TASKS": "8"})
    with pytest.raises(UserError, match="2 個行程"):
        check_gpus(MachineConfig(), FULL, 1)
    with pytest.raises(UserError, match="8 張卡"):
        check_gpus(MachineConfig(gpu="h100", gpus=8), FULL, 2)
