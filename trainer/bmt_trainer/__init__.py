"""Training of bit masks.

The parts are imported from their modules, so that none brings torch before it is needed::

    from bmt_trainer.methods.config import SftConfig                settings of a method
    from bmt_trainer.methods.sft import train                       train(config) -> Mask
    from bmt_trainer.masking.apply import apply, write_checkpoint   use a mask without a server
    from bmt_trainer.masking.adapters.peft import write_adapter     as an adapter of PEFT
    from bmt_trainer.data.examples import Example, Split            examples and held-out split
    from bmt_trainer.data.sources import load                       data sets by name
    from bmt_trainer.evaluation.score import Score, evaluate        held-out accuracy
    from bmt_trainer.masking.attach import Attached, attach         the parameterization itself
    from bmt_trainer.masking.initialization import init_gates       initial gates (Eq. 9)
"""

from bmt_trainer.errors import (
    ConfigError,
    DataError,
    EmptyMask,
    ExpertTensors,
    FusedGate,
    LibraryError,
    ModelError,
    ModelNotFound,
    NonFinite,
    NoTargets,
    OutputError,
    QuantizedModel,
    ResumeError,
    RewardError,
    RolloutError,
    TrainerError,
    UnknownBase,
)

__all__ = [
    "ConfigError",
    "DataError",
    "EmptyMask",
    "ExpertTensors",
    "FusedGate",
    "LibraryError",
    "ModelError",
    "ModelNotFound",
    "NoTargets",
    "NonFinite",
    "OutputError",
    "QuantizedModel",
    "ResumeError",
    "RewardError",
    "RolloutError",
    "TrainerError",
    "UnknownBase",
]
