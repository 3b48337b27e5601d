"""Errors of `bmt_trainer`, one tree::

TrainerError
├── ConfigError             a setting that is unknown, of a wrong type or out of bounds
├── ModelError              a model that cannot be masked
│   ├── NoTargets           no linear layer matches the pattern
│   ├── FusedGate           gate and up projection in one matrix
│   ├── QuantizedModel      quantized weights
│   ├── ExpertTensors       all experts in one 3-D tensor
│   ├── ModelNotFound       neither a folder nor a model of the Hub
│   └── UnknownBase         a loaded model of unknown checkpoint
├── LibraryError            a version of TRL or transformers without what training needs
├── RolloutError            a server's response or an environment that cannot be used
├── RewardError             a reward that fails, or gives what cannot be trained on
├── DataError               examples that are missing, malformed or too few
├── ResumeError             nothing to resume, or a run with other settings or contents
├── NonFinite               NaN or infinity in weights, gates, a loss, a gradient or logits
├── EmptyMask               a trained mask that deletes nothing
└── OutputError             an output that exists or cannot be written

A mask for another base raises `bmt_core.BaseMismatch`, and a bad `.bmt` file the other errors of
`bmt_core`.
"""

from __future__ import annotations

#: Variable of the environment with a path to which `bmt-train` writes the error that ends it, as
#: JSON with its class, `kind`, and its `message`: a line of text says not whose fault it is.
ERROR_FILE = "BMT_ERROR_FILE"


class TrainerError(Exception):
    """Base class of the trainer's errors."""


class ConfigError(TrainerError):
    """A setting that is unknown, of a wrong type or out of its bounds."""


class ModelError(TrainerError):
    """A model that cannot be masked."""


class NoTargets(ModelError):
    """No linear layer matches the pattern of targets."""


class FusedGate(ModelError):
    """Gate and up projection share one matrix, so the gate has no weight of its own."""


class QuantizedModel(ModelError):
    """The weights are quantized, so a zeroed weight is not one stored number."""


class ExpertTensors(ModelError):
    """A mixture of experts that stores its gates in one 3-D tensor."""


class ModelNotFound(ModelError):
    """Neither a folder nor a model that the Hub provides."""


class UnknownBase(ModelError):
    """A loaded model that does not name the checkpoint it was loaded from."""


class LibraryError(TrainerError):
    """The installed TRL or transformers lacks private parts that training needs."""


class RolloutError(TrainerError):
    """A server's responses cannot be used as rollouts, or an environment fails in them."""


class RewardError(TrainerError):
    """A reward that raises, is not finite, or gives another number of values than of answers."""


class DataError(TrainerError):
    """Examples that are missing, malformed or too few."""


class ResumeError(TrainerError):
    """A run that cannot be resumed: it was started with other settings, data or rewards."""


class NonFinite(TrainerError):
    """NaN or infinity in weights, gates, a loss, a gradient norm, calibration norms or logits."""


class EmptyMask(TrainerError):
    """A trained mask that deletes no weight: it is the base."""


class OutputError(TrainerError):
    """An output that exists already or cannot be written."""
