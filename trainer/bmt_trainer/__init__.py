"""Training of bit masks.

The parts are imported from their modules, so that none brings torch before it is needed::

    from bmt_trainer.sft import SftConfig, train           one method: settings, and train -> Mask
    from bmt_trainer.apply import apply, write_checkpoint  use a mask without a server
    from bmt_trainer.data import Example, Split, load      examples, and which are held out
    from bmt_trainer.evaluate import Score, evaluate       held-out accuracy
    from bmt_trainer.attach import Attached, attach        the parameterisation itself, with
    from bmt_trainer.scoring import init_gates             `masking`, `anneal` and `export`
"""

from bmt_trainer.errors import (
    ConfigError,
    DataError,
    ExpertTensors,
    FusedGate,
    ModelError,
    ModelNotFound,
    NoTargets,
    OutputError,
    QuantizedModel,
    ResumeError,
    RolloutError,
    TrainerError,
    UnknownBase,
)

__all__ = [
    "ConfigError",
    "DataError",
    "ExpertTensors",
    "FusedGate",
    "ModelError",
    "ModelNotFound",
    "NoTargets",
    "OutputError",
    "QuantizedModel",
    "ResumeError",
    "RolloutError",
    "TrainerError",
    "UnknownBase",
]
