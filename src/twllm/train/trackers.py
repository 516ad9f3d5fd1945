"""Where a run's numbers go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow. Each is optional and opened only when asked for.

A resumed phase goes on in the same W&B or MLflow run: its id is kept beside the phase's states. Steps that were lost with a
killed process are logged again; TensorBoard drops the old ones, W&B and MLflow keep both. A tracker that fails while it
logs (network, disk) is told once and left out; the training goes on.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from twllm.artifact import write_text
from twllm.errors import UserError
from twllm.train.watch_config import WatchConfig


class Tracker(Protocol):
    """Something that wants a run's numbers."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""
        ...

    def text(self, name: str, text: str, step: int) -> None:
        """A sample or an alarm."""
        ...

    def close(self) -> None:
        """No more."""
        ...


class TensorBoard:
    """torch's SummaryWriter."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One point a number."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        """Under its text tab."""
        self.writer.add_text(name, text, step)

    def close(self) -> None:
        """Flushes."""
        self.writer.close()


class WandB:
    """A Weights & Biases run; WANDB_MODE decides whether it leaves the machine."""

    def __init__(self, folder: Path, project: str, name: str) -> None:
        import wandb

        known = _read_id(folder / "wandb.id")
        self.run: Any = wandb.init(project=project, name=name, dir=str(folder), id=known, resume="allow")
        write_text(folder / "wandb.id", self.run.id)
        self.run.define_metric("*", step_metric="optimizer_step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Against our own step, so that a resumed run overlaps instead of being refused."""
        self.run.log({**values, "optimizer_step": step})

    def text(self, name: str, text: str, step: int) -> None:
        """As an HTML panel."""
        import html

        import wandb

        self.run.log({name: wandb.Html(f"<pre>{html.escape(text)}</pre>"), "optimizer_step": step})

    def close(self) -> None:
        """Uploads what is left, or leaves it for `wandb sync`."""
        self.run.finish(quiet=True)


class MLflow:
    """An MLflow run at MLFLOW_TRACKING_URI, by default the folder `mlruns` here."""

    def __init__(self, folder: Path, experiment: str, name: str) -> None:
        from mlflow.tracking import MlflowClient

        self.client: Any = MlflowClient()
        found = self.client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self.client.create_experiment(experiment)
        known = _read_id(folder / "mlflow.id")
        self.run_id = known or self.client.create_run(where, run_name=name).info.run_id
        write_text(folder / "mlflow.id", self.run_id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One call a step."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(k, float(v), now, step) for k, v in values.items()])

    def text(self, name: str, text: str, step: int) -> None:
        """A small file among the run's artifacts."""
        self.client.log_text(self.run_id, text, f"{name}/{step:08}.txt")

    def close(self) -> None:
        """Marks it finished."""
        self.client.set_terminated(self.run_id)


class Trackers:
    """All of a run; one that breaks is dropped with a word, since watching must not stop the training."""

    def __init__(self, opened: list[Tracker]) -> None:
        self.opened = opened

    def log(self, values: Mapping[str, float], step: int) -> None:
        """To each."""
        self._each("log", values, step)

    def text(self, name: str, text: str, step: int) -> None:
        """To each."""
        self._each("text", name, text, step)

    def close(self) -> None:
        """Each."""
        self._each("close")

    def _each(self, call: str, *args: object) -> None:
        for tracker in list(self.opened):
            try:
                getattr(tracker, call)(*args)
            except Exception as error:  # whatever a network client raises
                import sys

                self.opened.remove(tracker)
                print(f"※ {type(tracker).__name__} 停止記錄，訓練繼續 (tracker dropped): {error}", file=sys.stderr)


def open_trackers(folder: Path, name: str, step: int, tensorboard: bool | None, watch: WatchConfig | None) -> Trackers:
    """What the machine file and [watch] ask for; TensorBoard without being asked, where it is installed.

    Raises:
        UserError: something that was asked for is not installed.
    """
    opened: list[Tracker] = []
    if tensorboard or (tensorboard is None and importlib.util.find_spec("tensorboard")):
        _require("tensorboard", "machine.tensorboard = true")
        opened.append(TensorBoard(folder / "tensorboard", step))
    if watch and watch.wandb_project:
        _require("wandb", f"watch.wandb_project = {watch.wandb_project}")
        opened.append(WandB(folder, watch.wandb_project, name))
    if watch and watch.mlflow_experiment:
        _require("mlflow", f"watch.mlflow_experiment = {watch.mlflow_experiment}")
        opened.append(MLflow(folder, watch.mlflow_experiment, name))
    return Trackers(opened)


def _require(module: str, where: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"沒有安裝 {module} (not installed)", where, "pip install 'twllm[watch]'")


def _read_id(file: Path) -> str | None:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None
