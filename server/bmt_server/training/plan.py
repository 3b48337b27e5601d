"""The worker of `--train`: its command, the server's address, and its environment.

The server imports nothing of the trainer. It looks for its packages, and starts it as a program.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bmt_server.settings import SettingsError

_MODULE = "bmt_trainer"
# A package of each extra that a worker needs.
_NEEDED = {"trl": "trainer", "openai": "client"}
# Flags of the worker that the server decides, and one that would end it at once, for ever.
_OURS = ("--server", "--model", "--once")
# Of the server's environment: its secrets, and what is set for its engine alone.
_KEPT_BACK = ("BMT_", "VLLM_", "AWS_", "AZURE_", "GOOGLE_", "GCP_", "HF_TOKEN")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@dataclass(frozen=True, slots=True)
class Plan:
    """A worker's command without its key, its environment, and the address of its server."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    host: str
    port: int


def check_training(files: str, flags: str) -> None:
    """Raise SettingsError where a server cannot have a worker. files: their place; flags: its."""
    if sys.platform != "linux":
        raise SettingsError(
            "--train needs Linux, where a worker ends with its server however that ends; run "
            "`bmt-train worker` by itself"
        )
    if not files:
        raise SettingsError(
            "--train was given, and no --files: jobs read their rows there; add --files FOLDER"
        )
    worker_flags(flags)
    missing = [name for name in (_MODULE, *_NEEDED) if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"--train starts `bmt-train worker`, and {missing[0]} is not installed; run: pip "
            f"install 'bmt-adapters[{','.join(_NEEDED.values())}]'"
        )


def worker_flags(text: str) -> list[str]:
    """Flags of `bmt-train worker` in a line, as a shell reads it. Raises SettingsError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SettingsError(f"--train-flags is {text!r}: {error}") from None
    if words and not words[0].startswith("-"):
        raise SettingsError(f"--train-flags is {text!r}; it must begin with a flag of the worker")
    for word in words:
        if (flag := word.partition("=")[0]) in _OURS:
            raise SettingsError(f"--train-flags has {flag}, which --train sets itself; remove it")
    return words


def address_of(host: str | None, port: int, *, socket: str | None, tls: bool) -> tuple[str, int]:
    """Host and port by which a worker of this host reaches the server. Raises SettingsError.

    socket: the server's Unix socket; tls: it has a certificate, which names another host.
    """
    if socket or tls:
        what = f"--uds {socket}" if socket else "--ssl-certfile"
        raise SettingsError(
            f"--train reaches its server by HTTP on a port, and not with {what}; run `bmt-train "
            "worker --server URL` by itself"
        )
    try:
        address = ipaddress.ip_address(host or "0.0.0.0")
    except ValueError:
        return host or "", port  # a name
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return (str(address) if address.version == 4 else f"[{address}]"), port


def plan_of(
    model: str,
    folder: Path,
    flags: str,
    address: tuple[str, int],
    environment: Mapping[str, str],
) -> Plan:
    """The plan of a worker. model: the checkpoint's folder; folder: of its jobs, by default.

    environment: of the server, before it set any variable for its engine. By default it trains on
    the CPU: a GPU's memory is the engine's.
    """
    host, port = address
    given = worker_flags(flags)
    names = {word.partition("=")[0] for word in given}
    defaults = {"--folder": str(folder), "--device": "cpu"}
    command = [sys.executable, "-m", _MODULE, "worker", "--server", f"http://{host}:{port}"]
    command += ["--model", model]
    for flag, value in defaults.items():
        if flag not in names:
            command += [flag, value]
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(_KEPT_BACK) and name.lower() not in _PROXIES
    }
    return Plan((*command, *given), kept, host, port)
