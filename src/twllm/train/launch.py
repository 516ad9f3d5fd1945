"""Starting a recipe on many cards: a Slurm script that starts one torchrun a host, and a DeepSpeed config for those who use DeepSpeed.

The script is plain bash that can be read and changed. torchrun's c10d rendezvous meets at the first host of the job; a killed or requeued
job is submitted again and goes on from its last state. DeepSpeed itself is not used here: its numbers are the recipe's, in its words.
"""

import json
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from twllm.train.config import MachineConfig, OptimConfig

STAGE = {"none": 0, "optimizer": 2, "full": 3}
Recipe = Annotated[Path, typer.Argument(help="配方檔 (recipe, TOML)", metavar="RECIPE")]
Machine = Annotated[Path | None, typer.Option("--machine", help="機器設定檔 (machine file)")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="改一個值 (override)；可重複", metavar="KEY=VALUE")]
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
{gpus}#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={log}
{extra}
set -euo pipefail
# one torchrun a host; they meet at the first one (twllm train slurm)
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{threads}}}"
# since Slurm 22.05 srun does not take the job's cores by itself
if [ -n "${{SLURM_CPUS_PER_TASK:-}}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi

srun --kill-on-bad-exit=1 {torchrun} \\
  --nnodes={nodes} --nproc-per-node={per_node} \\
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" \\
  -m twllm run {arguments}
"""


def slurm(
    recipe: Recipe,
    nodes: Annotated[int, typer.Option(min=1, help="幾台主機 (hosts)")],
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", min=1, help="每台幾張卡；--cpu 時是幾個行程")] = 8,
    machine: Machine = None,
    out: Annotated[Path | None, typer.Option("--out", help="訓練的輸出資料夾，要在共用檔案系統上 (shared)")] = None,
    script: Annotated[Path | None, typer.Option(help="腳本寫到哪；不給就印出來 (default: stdout)")] = None,
    time: Annotated[str, typer.Option(help="最長時間 (Slurm --time)")] = "2-00:00:00",
    sbatch: Annotated[
        list[str] | None, typer.Option(help='多加的 #SBATCH 行，例如 "--partition=h100"、"--cpus-per-task=64"；可重複')
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="沒有 GPU：gloo (no GPUs)")] = False,
    set_: Sets = None,
    until: Annotated[str | None, typer.Option(help="做到這個階段為止 (last stage)")] = None,
    torchrun: Annotated[str, typer.Option(help="每台主機上的 torchrun 指令")] = "torchrun",
    submit: Annotated[bool, typer.Option("--submit", help="寫好就交給 sbatch (needs --script)")] = False,
) -> None:
    """Slurm 腳本：每台主機一個 torchrun；斷了再交一次會接續 (an sbatch script; submit it again to go on)."""
    from twllm import artifact
    from twllm.errors import UserError
    from twllm.recipe import load_machine, load_recipe

    loaded, settings = load_recipe(recipe, set_ or (), unset_ok=not submit), load_machine(machine)
    processes = nodes * gpus_per_node
    if settings.gpus > 1 and settings.gpus != processes:
        what = (
            f"機器設定檔是給 {settings.gpus} 張卡的，這裡是 {nodes} × {gpus_per_node} (made for another number of GPUs)"
        )
        raise UserError(what, machine or "", "改 --nodes、--gpus-per-node，或用 twllm plan 重做機器設定檔")
    folder = out or Path("runs") / loaded.recipe.name
    arguments = [str(recipe), "--out", str(folder), *(["--machine", str(machine)] if machine else [])]
    arguments += [word for value in set_ or [] for word in ("--set", value)] + (["--until", until] if until else [])
    text = SCRIPT.format(
        name=shlex.quote(loaded.recipe.name), nodes=nodes, per_node=gpus_per_node, time=time,
        log=shlex.quote(f"{loaded.recipe.name}-%j.log"),
        gpus="" if cpu else f"#SBATCH --gpus-per-node={gpus_per_node}\n", threads=1 if cpu else 8, torchrun=torchrun,
        extra="".join(f"#SBATCH {line}\n" for line in sbatch or []), arguments=shlex.join(arguments),
    )  # fmt: skip
    if not any("cpus-per" in line or "exclusive" in line for line in sbatch or []):
        typer.echo(
            f'※ 沒有說要幾個核心，很多叢集就只給 1 個；加上 --sbatch "--cpus-per-task={8 * gpus_per_node}" 之類 (cores of a host)',
            err=True,
        )
    if script is None:
        if submit:
            raise UserError("--submit 要有腳本檔 (needs --script)", "--submit", "加上 --script job.sh")
        typer.echo(text, nl=False)
        return
    artifact.write_text(script, text)
    if submit:
        try:
            done = subprocess.run(["sbatch", str(script)], check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError(
                "找不到 sbatch (not on a Slurm cluster)", "--submit", f"在登入節點上執行 sbatch {script}"
            ) from error
        except subprocess.CalledProcessError as error:
            raise UserError(
                f"sbatch 不收 (refused): {error.stderr.strip()}", script, "檢查腳本的 #SBATCH 行"
            ) from error
        typer.echo(done.stdout.strip())


def deepspeed_config(
    recipe: Recipe,
    gpus: Annotated[int, typer.Option(min=1, help="總共幾張卡 (over all hosts)")],
    phase: Annotated[str, typer.Option(help="pretrain、sft 或 feedback")] = "sft",
    machine: Machine = None,
    set_: Sets = None,
    out: Annotated[Path | None, typer.Option("--out", help="寫到哪個 JSON；不給就印出來 (default: stdout)")] = None,
) -> None:
    """DeepSpeed 設定檔：ZeRO 階段、批次、bf16、最佳化器，數字同配方 (a DeepSpeed JSON with the recipe's numbers)."""
    from twllm import artifact
    from twllm.errors import UserError, did_you_mean
    from twllm.recipe import load_machine, load_recipe

    loaded, phases = load_recipe(recipe, set_ or (), unset_ok=True), ("pretrain", "sft", "feedback")
    if phase not in phases:
        raise UserError("沒有這個階段 (no such phase)", phase, did_you_mean(phase, phases))
    made = as_deepspeed(getattr(loaded.recipe, phase), load_machine(machine), gpus)
    if out:
        artifact.write_json(out, made)
    else:
        typer.echo(json.dumps(made, indent=2))


def as_deepspeed(phase: "OptimConfig", machine: "MachineConfig", gpus: int) -> dict[str, Any]:
    """The recipe's numbers in DeepSpeed's words; batches there are rows.

    Raises:
        UserError: the rows of a step do not divide among the cards: DeepSpeed takes equal shares only; the optimizer is not AdamW.
    """
    from twllm.errors import UserError

    if phase.optimizer != "adamw":
        raise UserError("只能匯出 AdamW (only AdamW can be exported)", f"optimizer = {phase.optimizer}", "改用 AdamW")
    for key in ("context_parallel", "tensor_parallel"):
        if getattr(machine, key) > 1:
            raise UserError("DeepSpeed 的設定裡沒有這個 (no such key)", f"machine.{key}", f"{key} = 1")
    rows = max(1, phase.batch_tokens // phase.context)
    share, rest = divmod(rows, gpus)
    if rest:
        what = f"一步 {rows} 列分不平給 {gpus} 張卡 (DeepSpeed needs equal shares)"
        near = max(d for d in range(1, rows + 1) if rows % d == 0 and d <= gpus)
        raise UserError(what, "batch_tokens", f"改 batch_tokens，或用 {near} 張卡")
    most = max(1, machine.micro_batch_tokens // phase.context)
    micro = max(d for d in range(1, share + 1) if share % d == 0 and d <= most)
    made: dict[str, Any] = {
        "train_batch_size": rows,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": share // micro,
        "gradient_clipping": phase.clip,
        "bf16": {"enabled": machine.precision != "fp32"},
        "zero_optimization": {"stage": STAGE[machine.sharding], "overlap_comm": True, "contiguous_gradients": True},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": phase.lr,
                "betas": [phase.beta1, phase.beta2],
                "eps": 1e-8,
                "weight_decay": phase.weight_decay,
            },
        },
    }
    if machine.sharding == "full":
        made["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    return made
