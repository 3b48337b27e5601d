"""Methods of fine-tuning jobs: a closed list of kinds with bounded hyperparameters.

They travel as JSON and are checked wherever they are read: whoever can write to the registry can
name no other code to run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from bmt_core import GraderError
from bmt_core.fine_tuning import graders
from pydantic import BaseModel, ConfigDict, Field, field_validator

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


class ReinforcementHyperparameters(Hyperparameters):
    """compute_multiplier: of the answers that are sampled of each prompt.

    eval_interval: steps between validations and checkpoints; eval_samples: one greedy answer of
    each row of the validation file.
    """

    compute_multiplier: Auto | Annotated[float, Field(gt=0, le=8)] = "auto"
    eval_interval: Auto | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    eval_samples: Auto | Annotated[int, Field(ge=1, le=1)] = "auto"
    reasoning_effort: Literal["default"] = "default"


class Supervised(_Closed):
    """Supervised fine-tuning."""

    type: Literal["supervised"] = "supervised"
    hyperparameters: Hyperparameters = Hyperparameters()


class Dpo(_Closed):
    """Preference pairs."""

    type: Literal["dpo"] = "dpo"
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class Reinforcement(_Closed):
    """Rewards of a grader, which is kept as it was given and checked wherever it is read."""

    type: Literal["reinforcement"] = "reinforcement"
    grader: dict[str, Any]
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()

    @field_validator("grader")
    @classmethod
    def _is_a_grader(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            graders.parse(value)
        except GraderError as error:
            raise ValueError(str(error)) from None
        return value


AnyMethod = Supervised | Dpo | Reinforcement
Method = Annotated[AnyMethod, Field(discriminator="type")]


def shown(method: AnyMethod) -> dict[str, Any]:
    """A method in OpenAI's form."""
    return {"type": method.type, method.type: method.model_dump(mode="json", exclude={"type"})}
