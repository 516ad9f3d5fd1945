"""Recipe section [corpus.privacy]: settings of the step privacy."""

from typing import Literal

from pydantic import Field

from twllm.config import Config

Kind = Literal[
    "identity", "permit", "company", "health_card", "passport", "mobile", "phone", "email", "card", "account", "plate", "address",
]  # fmt: skip


class PrivacyConfig(Config):
    """[corpus.privacy]: what the step privacy leaves alone."""

    keep: tuple[Kind, ...] = Field((), description="privacy: kinds that are not masked, such as company, address")
    keep_offices: bool = Field(
        False, description="privacy: land-lines, addresses and e-mail of offices, schools, companies stay"
    )
