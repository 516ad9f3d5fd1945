"""Recipe section [watch]: what is looked at while a model trains. Nothing here changes the weights."""

from pydantic import Field, model_validator

from twllm.config import Config


class WatchConfig(Config):
    """[watch]: samples, alarms, trackers (docs/watching.md)."""

    prompts: tuple[str, ...] = Field(
        (), description="what the model is asked while it trains (pretraining: texts to go on with)"
    )
    sample_every: int = Field(0, ge=0, description="steps between answers to `prompts`; 0: none")
    sample_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
    alarms: bool = Field(True, description="name the documents at fault when the loss jumps")
    alarm_z: float = Field(
        8.0, gt=0, description="a jump is so many robust standard deviations above the usual loss; less: more alarms"
    )
    wandb_project: str | None = Field(
        None, description="Weights & Biases project; WANDB_MODE=offline keeps it on this machine"
    )
    mlflow_experiment: str | None = Field(
        None, description="MLflow experiment; MLFLOW_TRACKING_URI says where, a folder will do"
    )

    @model_validator(mode="after")
    def _no_idle_settings(self) -> "WatchConfig":
        if bool(self.prompts) != bool(self.sample_every):
            raise ValueError("prompts and sample_every go together")
        if self.sample_tokens != WatchConfig.model_fields["sample_tokens"].default and not self.prompts:
            raise ValueError("sample_tokens would be ignored without prompts")
        if self.alarm_z != WatchConfig.model_fields["alarm_z"].default and not self.alarms:
            raise ValueError("alarm_z would be ignored with alarms = false")
        return self
