"""The worker of `bmt-server serve --train`, by vLLM's arguments."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from bmt_server.cli.common import say
from bmt_server.settings import Settings
from bmt_server.training.keys import NoKeys, RegistryKeys, WorkerKeys
from bmt_server.training.plan import address_of, plan_of
from bmt_server.training.supervisor import Supervisor


def address(args: Namespace) -> tuple[str, int]:
    """Host and port by which a worker of this host reaches the server. Raises SettingsError."""
    tls = bool(args.ssl_certfile or args.ssl_keyfile)
    return address_of(args.host, args.port, socket=args.uds, tls=tls)


def worker(
    settings: Settings, args: Namespace, data_dir: Path, environment: Mapping[str, str]
) -> Supervisor:
    """The worker, as a context that it runs in. environment: see `plan_of`."""
    folder = (data_dir / "worker").absolute()
    plan = plan_of(args.model, folder, settings.train_flags, address(args), environment)
    keys: WorkerKeys = NoKeys() if settings.no_auth else RegistryKeys(settings.registry_url)
    say("a worker of fine-tuning jobs starts once the server is ready")
    return Supervisor(plan, keys, settings.stats_dir, say)
