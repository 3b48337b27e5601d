"""A run's rollouts on servers: checked before weights are loaded, removed when the run ends."""

from __future__ import annotations

import hashlib
import platform
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bmt_core.gates.geometry import served_geometry

from bmt_trainer.distributed import failing_together, of_main_process
from bmt_trainer.errors import ConfigError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.masking.initialization import expected_sparsity
from bmt_trainer.methods import pipeline
from bmt_trainer.methods.config import OnPolicyConfig
from bmt_trainer.methods.guards.targets import masked_tensors
from bmt_trainer.methods.pipeline import Inputs, Loaded
from bmt_trainer.methods.rollouts.checks import Requirements
from bmt_trainer.methods.rollouts.connection import Connection
from bmt_trainer.methods.rollouts.local import eos_token_ids
from bmt_trainer.methods.rollouts.server import PREFIX, ServerRollouts
from bmt_trainer.methods.rollouts.steps import StepRollouts
from bmt_trainer.process import is_main_process, rank

# Seconds for a request besides those of its tokens.
_BESIDES_S = 60.0


def check_servers(config: OnPolicyConfig, inputs: Inputs) -> None:
    """Compare the servers of the settings, if any, with the run's needs, before weights are loaded.

    Raises RolloutError, and ConfigError for settings that no server can serve.
    """
    if not config.servers:
        return
    _check_targets(config.targets, inputs)
    with failing_together():  # each process must reach all of them
        for url in config.servers:
            server = _connection(url, config, inputs)
            try:
                server.open()
            finally:
                server.close()


@contextmanager
def server_rollouts(
    config: OnPolicyConfig, loaded: Loaded, attached: Attached
) -> Iterator[StepRollouts | None]:
    """Rollouts on the servers of the settings; None if the model generates them itself."""
    if not config.servers:
        yield None
        return
    name, stops = _mask_name(loaded), sorted(eos_token_ids(loaded.model, loaded.tokenizer))
    servers = list[ServerRollouts]()
    with failing_together():
        for url in config.servers:
            server = _connection(url, config, loaded)
            server.reopen()
            made = ServerRollouts(
                server,
                name if len(config.servers) == 1 else f"{name}-{_digest(url)}",
                max_tokens=loaded.config.max_new_tokens,
                temperature=config.temperature,
                sampling={**config.sampling, "stop_token_ids": stops},
            )
            servers.append(made)
    # Read by whoever lists masks and wonders whose this is.
    whose = {"run": loaded.run.folder.name, "host": platform.node()}
    rollouts = StepRollouts(servers, partial(pipeline.current_mask, loaded, attached, whose))
    try:
        yield rollouts
    except BaseException:
        rollouts.close(finished=False)
        raise
    rollouts.close()


def _check_targets(targets: str | None, inputs: Inputs) -> None:
    """Raise ConfigError for layers whose masks a server does not take."""
    served = served_geometry(inputs.folder)
    masked = masked_tensors(inputs.folder, targets, inputs.geometry)
    if other := next((name for name in masked if name not in served), None):
        raise ConfigError(
            "targets: servers take masks of gate projections that are matrices of their own, and "
            f"{targets or 'the default'} has {other}; leave "
            f"{'--server out' if targets is None else 'targets out, or --server'}"
        )


def _connection(url: str, config: OnPolicyConfig, inputs: Inputs) -> Connection:
    """A connection to a server, with the needs of the run. Raises ConfigError."""
    return Connection(
        url,
        Requirements(
            fingerprint=inputs.base.fingerprint,
            prompt=max(inputs.lengths[config.validation :]),
            answer=inputs.config.max_new_tokens,
            completions=getattr(config, "completions", 1),
            sparsity=expected_sparsity(
                eta=config.eta,
                mean=config.init_mean,
                std=config.init_std,
                tail=config.init == "paper",
            ),
        ),
        wait_s=60 * config.server_wait,
        limit_s=_BESIDES_S + config.server_token_seconds * inputs.config.max_new_tokens,
        say=inputs.display.say if is_main_process() else _say_of_another,
    )


def _mask_name(loaded: Loaded) -> str:
    """The run's name on servers, kept in its folder: a resumed run takes its mask up again."""
    kept = loaded.run.notes.get("rollout_name")
    name = of_main_process(str(kept or f"{PREFIX}{uuid.uuid4().hex[:12]}"))
    if kept is None:
        loaded.run.note("rollout_name", name)
    return name


def _digest(url: str) -> str:
    """A few characters for a server: its mask has a name of its own.

    Servers that share a registry would push each other's flips, each to the other's version.
    """
    return hashlib.sha256(url.encode()).hexdigest()[:6]


def _say_of_another(text: str) -> None:
    """Show a line of a process that is not the first: its server may be away for it alone."""
    print(f"process {rank()}: {text}", file=sys.stderr, flush=True)
