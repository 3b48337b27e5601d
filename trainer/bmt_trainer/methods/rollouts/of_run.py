"""A run's rollouts on a server: checked before weights are loaded, removed when the run ends."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import bmt_core

from bmt_trainer.errors import ConfigError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.masking.initialization import expected_sparsity
from bmt_trainer.methods import pipeline
from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.guards.targets import masked_tensors
from bmt_trainer.methods.pipeline import Inputs, Loaded
from bmt_trainer.methods.rollouts.checks import Requirements
from bmt_trainer.methods.rollouts.connection import Connection
from bmt_trainer.methods.rollouts.local import eos_token_ids
from bmt_trainer.methods.rollouts.server import PREFIX, ServerRollouts

# Seconds for a request besides those of its tokens.
_BESIDES_S = 60.0


def check_server(config: GrpoConfig, inputs: Inputs) -> None:
    """Compare the server with the run's needs, before weights are loaded.

    Raises RolloutError, and ConfigError for settings that no server can serve.
    """
    _check_targets(config.targets, inputs)
    server = _connection(config, inputs)
    try:
        server.open()
    finally:
        server.close()


@contextmanager
def server_rollouts(
    config: GrpoConfig, loaded: Loaded, attached: Attached
) -> Iterator[ServerRollouts | None]:
    """Rollouts on the server of the settings; None if the model generates them itself."""
    if config.server is None:
        yield None
        return
    server = _connection(config, loaded)
    server.reopen()
    rollouts = ServerRollouts(
        server,
        _mask_name(loaded),
        # Read by whoever lists masks and wonders whose this is.
        partial(
            pipeline.current_mask,
            loaded,
            attached,
            {"run": loaded.run.folder.name, "host": platform.node()},
        ),
        max_tokens=loaded.config.max_new_tokens,
        temperature=config.temperature,
        sampling={
            "top_p": config.top_p,
            "top_k": config.top_k,
            "min_p": config.min_p,
            "stop_token_ids": sorted(eos_token_ids(loaded.model, loaded.tokenizer)),
        },
    )
    try:
        yield rollouts
    except BaseException:
        rollouts.close(finished=False)
        raise
    rollouts.close()


def _check_targets(targets: str | None, inputs: Inputs) -> None:
    """Raise ConfigError for layers whose masks a server does not take."""
    served = bmt_core.geometry(inputs.folder)
    masked = masked_tensors(inputs.folder, targets, inputs.geometry)
    if other := next((name for name in masked if name not in served), None):
        raise ConfigError(
            "targets: servers take masks of the text model's gate projections alone, and "
            f"{targets or 'the default'} has {other}; leave "
            f"{'--server out' if targets is None else 'targets out, or --server'}"
        )


def _connection(config: GrpoConfig, inputs: Inputs) -> Connection:
    """A connection to the server of the settings, with the needs of the run. Raises ConfigError."""
    assert config.server is not None
    return Connection(
        config.server,
        Requirements(
            fingerprint=inputs.base.fingerprint,
            prompt=max(inputs.lengths[config.validation :]),
            answer=inputs.config.max_new_tokens,
            completions=config.completions,
            sparsity=expected_sparsity(
                eta=config.eta,
                mean=config.init_mean,
                std=config.init_std,
                tail=config.init == "paper",
            ),
        ),
        wait_s=60 * config.server_wait,
        limit_s=_BESIDES_S + config.server_token_seconds * inputs.config.max_new_tokens,
        say=inputs.display.say,
    )


def _mask_name(loaded: Loaded) -> str:
    """The run's name on the server, kept in its folder: a resumed run takes its mask up again."""
    kept = loaded.run.notes.get("rollout_name")
    name = str(kept or f"{PREFIX}{uuid.uuid4().hex[:12]}")
    if kept is None:
        loaded.run.note("rollout_name", name)
    return name
