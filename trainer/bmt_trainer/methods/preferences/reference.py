"""The base as the reference of training by preferences: the policy with its mask off."""

from __future__ import annotations

from typing import Any

from torch import nn

from bmt_trainer.methods.trl_mixins import BaseReference, MaskedTraining


class _NoReference(nn.Module):
    """A reference's place while TRL makes its trainer: without one, it loads the base again."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self) -> None:
        """Compute nothing."""


class AgainstBase(MaskedTraining):
    """Mixin before TRL's `DPOTrainer` or `KTOTrainer`: soft mask (Eq. 6), rows of tokens.

    The reference is the policy with its mask off: the base, bit for bit, in the batches and the
    arithmetic of the policy.
    """

    # Departure: TRL's reference is a second model.

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, ref_model=_NoReference(model.config), **kwargs)
        trainer: Any = self
        trainer.ref_model = BaseReference(trainer.model, self.attached.state)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        return dataset
