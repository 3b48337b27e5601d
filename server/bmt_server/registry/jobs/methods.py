"""Methods of fine-tuning jobs: a closed list of kinds with bounded hyperparameters.

They travel as JSON and are checked wherever they are read: whoever can write to the registry can
name no other code to run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Hyperparameters(_Closed):
    """Of every method. learning_rate_multiplier: of the method's own rate."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=100)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=100)] = "auto"


class DpoHyperparameters(Hyperparameters):
    """beta: how little the mask may differ from the base."""

    beta: Auto | Annotated[float, Field(gt=0, le=10)] = "auto"


class Supervised(_Closed):
    """Supervised fine-tuning."""

    type: Literal["supervised"] = "supervised"
    hyperparameters: Hyperparameters = Hyperparameters()


class Dpo(_Closed):
    """Preference pairs."""

    type: Literal["dpo"] = "dpo"
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


Method = Annotated[Supervised | Dpo, Field(discriminator="type")]


def shown(method: Supervised | Dpo) -> dict[str, Any]:
    """A method in OpenAI's form."""
    return {
        "type": method.type,
        method.type: {"hyperparameters": method.hyperparameters.model_dump(mode="json")},
    }
