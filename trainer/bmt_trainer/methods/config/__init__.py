"""Settings of the training methods: one frozen dataclass per method. Imports no torch.

TrainConfig
├── SftConfig
├── PreferenceConfig
│   ├── DpoConfig
│   └── KtoConfig
└── OnPolicyConfig
    ├── GrpoConfig
    └── SdftConfig
"""

from bmt_trainer.methods.config.dpo import DpoConfig
from bmt_trainer.methods.config.grpo import LIVE_SET_MIN_ALPHA, GrpoConfig
from bmt_trainer.methods.config.kto import KtoConfig
from bmt_trainer.methods.config.on_policy import OnPolicyConfig
from bmt_trainer.methods.config.preferences import PreferenceConfig
from bmt_trainer.methods.config.sdft import TEACHER_PROMPT, SdftConfig
from bmt_trainer.methods.config.training import SftConfig, TrainConfig

__all__ = [
    "LIVE_SET_MIN_ALPHA",
    "TEACHER_PROMPT",
    "DpoConfig",
    "GrpoConfig",
    "KtoConfig",
    "OnPolicyConfig",
    "PreferenceConfig",
    "SdftConfig",
    "SftConfig",
    "TrainConfig",
]
