"""What `bmt-server serve` decided once and every process of the server reads.

vLLM starts its engine and worker processes itself, so settings travel in one environment
variable as JSON. The variable's presence is also what switches the plugin on: in any other
vLLM of the same environment the plugin does nothing.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

ENV = "BMT_SERVER_SETTINGS"

MaskMode = Literal["auto", "scatter", "delta"]
MASK_MODES: tuple[MaskMode, ...] = ("auto", "scatter", "delta")
# Sequences that may run or wait, where --max-num-queued-reqs does not say.
QUEUED = 2048


class SettingsError(ValueError):
    """A setting is unknown or out of bounds; the message names it, the bound and the fix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings of one server, shared by its API, engine and worker processes."""

    model_id: str  # what the user asked for: a Hub id or a folder
    model_path: str  # local folder of the checkpoint
    fingerprint: str  # of that checkpoint, 64 hex digits
    gates: dict[str, tuple[int, int]]  # maskable tensors: checkpoint name -> [d_out, d_in]
    mask_mode: MaskMode = "auto"
    registry_url: str = ""  # redis://, rediss:// or unix://; empty only in offline use
    cache_dir: str = ""  # laid-out masks, content-addressed
    mask_cache_bytes: int = 10 << 30  # bound on that folder, bytes
    stats_dir: str = ""  # worker figures, read by /metrics
    mask_memory_bytes: int = 1 << 30  # for masks in each worker, bytes; a GPU's is taken at start
    scatter_quantum_s: float = 0.05  # `scatter`: how long a turn lasts if nothing cuts it, seconds
    scatter_max_wait_s: float = 1.0  # `scatter`: bound on the wait for a turn, seconds
    max_upload_bytes: int = 0  # 0: derived from the geometry
    max_sparsity: float = 0.5  # share of the gate weights a mask may delete
    auth: bool = True  # False only on loopback, by an explicit flag
    metrics_open: bool = False  # True: /metrics needs no key
    max_mask_labels: int = 100  # distinct values of the `mask` label in metrics
    hang_s: float = 50.0  # without a sign of life from an engine that has work; 0: not watched
    drain_s: float = 30.0  # that running requests have to end after SIGTERM, seconds
    key_concurrency: int = 0  # requests of one API key at once, in each API process; 0: no limit
    key_rate: float = 0.0  # and a second
    queue: int = QUEUED  # sequences that run or wait, which API processes share; beyond it, 503

    def __post_init__(self) -> None:
        if self.mask_mode not in MASK_MODES:
            raise SettingsError(
                f"mask_mode is {self.mask_mode!r}; it must be one of {', '.join(MASK_MODES)}"
            )
        if self.mask_memory_bytes < 1 << 20:
            raise SettingsError(
                f"mask_memory_bytes is {self.mask_memory_bytes}; at least 1 MiB (1048576) is needed"
            )
        if self.mask_cache_bytes < 1 << 20:
            raise SettingsError(
                f"mask_cache_bytes is {self.mask_cache_bytes}; at least 1 MiB (1048576) is needed"
            )
        if not 0.0 < self.max_sparsity <= 1.0:
            raise SettingsError(f"max_sparsity is {self.max_sparsity}; it must be in (0, 1]")
        if self.key_concurrency < 0 or self.key_rate < 0:
            raise SettingsError(
                f"key_concurrency is {self.key_concurrency} and key_rate {self.key_rate:g}; both "
                "must be >= 0, and 0 is no limit"
            )
        if self.queue < 1:
            raise SettingsError(
                f"queue (--max-num-queued-reqs) is {self.queue}; at least 1 is needed"
            )
        if self.scatter_quantum_s < 0:
            raise SettingsError(f"scatter_quantum_s is {self.scatter_quantum_s}; it must be >= 0")
        if not self.scatter_max_wait_s > 0:
            raise SettingsError(f"scatter_max_wait_s is {self.scatter_max_wait_s}; it must be > 0")

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Parse what `to_json` wrote. Unknown keys are errors: two versions must not mix."""
        raw = json.loads(text)
        unknown = set(raw) - {f.name for f in fields(cls)}
        if unknown:
            raise SettingsError(
                f"unknown settings {sorted(unknown)}: all processes must run the same version"
            )
        raw["gates"] = {name: (int(r), int(c)) for name, (r, c) in raw["gates"].items()}
        return cls(**raw)

    def export_env(self) -> None:
        """Hand the settings to every process that this one starts.

        An 8B model's gate list is 3 kB, far below the limit on an environment variable.
        """
        os.environ[ENV] = self.to_json()

    @classmethod
    def from_env(cls) -> Settings | None:
        """The settings of this process, or None where no `bmt-server` asked for masks."""
        text = os.environ.get(ENV)
        return cls.from_json(text) if text else None

    @property
    def cache_path(self) -> Path:
        return Path(self.cache_dir)
