"""Errors of `bmt_trainer`, one tree::

TrainerError
├── ConfigError             a setting that does not exist, has a wrong type or is out of bounds
├── ModelError              a model that cannot be masked
│   ├── NoTargets           no layer matches the pattern
│   ├── FusedGate           gate and up projection share one matrix
│   ├── QuantizedModel      the weights are quantised
│   ├── ExpertTensors       experts as one 3-D tensor
│   ├── ModelNotFound       neither a folder nor a model of the Hub
│   └── UnknownBase         which checkpoint a loaded model came from cannot be told
├── RolloutError            a server did not answer as rollouts need it
├── DataError               examples that are missing, malformed or too few
├── ResumeError             nothing to resume, or the run was started otherwise
└── OutputError             the output exists or cannot be written

A mask for another base raises `bmt_core.BaseMismatch`, and a bad `.bmt` file the other errors of
`bmt_core`.
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of all errors here."""


class ConfigError(TrainerError):
    """A setting that does not exist, has a wrong type or is out of its bounds."""


class ModelError(TrainerError):
    """A model that cannot be masked."""


class NoTargets(ModelError):
    """No linear layer matches the pattern of targets."""


class FusedGate(ModelError):
    """Gate and up projection share one matrix, so that the gate has no weight of its own."""


class QuantizedModel(ModelError):
    """The weights are quantised: a deleted weight would not be one stored number."""


class ExpertTensors(ModelError):
    """A mixture of experts that keeps its gates in one 3-D tensor."""


class ModelNotFound(ModelError):
    """Neither a folder nor a model that the Hub gives."""


class UnknownBase(ModelError):
    """A loaded model does not say which checkpoint it came from."""


class RolloutError(TrainerError):
    """A server's answers cannot be used as rollouts."""


class DataError(TrainerError):
    """Examples that are missing, malformed or too few."""


class ResumeError(TrainerError):
    """There is nothing to resume, or the run was started with other settings."""


class OutputError(TrainerError):
    """The output exists already or cannot be written."""
