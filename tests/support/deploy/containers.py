"""Services of a Compose project as processes: the same commands on the host's own programs.

No engine of containers is needed, but root: each service has the host's file system under a layer
of its own (overlay), which is read-only where the service says so, with its volumes and files at
their paths, and its user without capabilities. All share one network of loopback alone, so that
their ports are free and they reach nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.deploy import compose

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_STOP_S = 60


@dataclass(frozen=True)
class Image:
    """A stand-in for an image: programs of the host at its paths, its environment and folder."""

    programs: Mapping[str, Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""  # uid:gid, where the service names none
    folder: str = "/"


@contextlib.contextmanager
def network() -> Iterator[None]:
    """A network of loopback alone, for this thread and the processes that it starts.

    Skips the test where the host does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0:
        pytest.skip("namespaces of network and mounts need root")
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(_NEW_NETWORK) != 0:
        pytest.skip(f"no network of its own: {os.strerror(ctypes.get_errno())}")
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        assert libc.setns(before, _NEW_NETWORK) == 0
        os.close(before)


class Container:
    """One running service. folder: for its layer, its log and the project's volumes.

    more: environment as of `docker compose run --env`.
    """

    def __init__(
        self, project: Mapping[str, Any], name: str, image: Image, folder: Path, **more: str
    ) -> None:
        self._service, self._more = project["services"][name], more
        self._image, self._layer = image, folder / "layers" / name
        self._layer.mkdir(parents=True)
        self.volumes = folder / "volumes"
        self.log = folder / f"{name}.log"
        self._user = self._service.get("user") or image.user
        hosts = folder / "hosts"
        hosts.write_text("".join(f"127.0.0.1 {host}\n" for host in _hosts(project)))
        self._files = {**compose.config_files(project, self._service), "/etc/hosts": hosts}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-euc", self._script(), name, *self._command()],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _command(self) -> list[str]:
        words: list[str] = list(self._service.get("entrypoint", []))
        command = self._service.get("command", [])
        return words + (shlex.split(command) if isinstance(command, str) else command)

    def _environment(self) -> dict[str, str]:
        own = {k: str(v) for k, v in self._service.get("environment", {}).items()}
        return {"PATH": _SYSTEM_PATH, **self._image.environment, **own, **self._more}

    def _as_user(self) -> str:
        uid, _, gid = self._user.partition(":")
        return (
            f"setpriv --reuid {uid} --regid {gid} --clear-groups --no-new-privs"
            " --bounding-set=-all --inh-caps=-all"
        )

    def _script(self) -> str:
        """Commands that lay out the file system and become the service's command."""
        at = shlex.quote(str(self._layer))
        root = f"{at}/root"
        shared = self._service.get("shm_size", "64m")  # the engine's default
        lines = [
            "mount --make-rprivate /",
            f"mount -t tmpfs layer {at}",
            f"mkdir {at}/upper {at}/work {root}",
            f"mount -t overlay layer -o lowerdir=/,upperdir={at}/upper,workdir={at}/work {root}",
            # An interpreter may lie in root's home.
            f"chmod 711 {root}/root",
            *(f"mount --rbind /{one} {root}/{one}" for one in ("proc", "dev", "sys")),
            f"mount -t tmpfs -o size={compose.size(shared)} shm {root}/dev/shm",
        ]
        for path, program in self._image.programs.items():
            lines += [f"mkdir -p $(dirname {root}{path})", f"ln -sf {program} {root}{path}"]
        for path, (name, read_only) in compose.mounts(self._service).items():
            volume = self.volumes / name
            if not volume.exists():
                # As an empty volume, it takes the owner of the image's folder.
                volume.mkdir(parents=True)
                os.chown(volume, *map(int, self._user.split(":")))
            lines += [f"mkdir -p {root}{path}", f"mount --bind {volume} {root}{path}"]
            lines += [f"mount -o remount,bind,ro {root}{path}"] if read_only else []
        for path, file in self._files.items():
            lines += [f"mkdir -p $(dirname {root}{path})", f"cat {file} >{root}{path}"]
        for folder in self._service.get("tmpfs", []):
            path, _, options = folder.partition(":")
            options = f"noexec,nosuid,nodev,{options}"  # the engine's own defaults
            lines.append(f"mount -t tmpfs -o {options} tmp {root}{path}")
        if self._service.get("read_only"):
            lines.append(f"mount -o remount,bind,ro {root}")
        within = f'cd {self._image.folder}; exec "$@"'
        lines.append(f'exec chroot {root} {self._as_user()} sh -c {shlex.quote(within)} sh "$@"')
        return "\n".join(lines)

    def healthy(self) -> bool:
        """The service's health check, in its container."""
        form, *test = self._service["healthcheck"]["test"]
        if form == "CMD-SHELL":
            test = ["sh", "-c", *test]
        return self.run(*test).returncode == 0

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in the container, as `docker compose exec` runs it."""
        enter = f"nsenter --target {self.process.pid} --mount --root {self._as_user()}"
        within = f'cd {self._image.folder}; exec "$@"'
        return subprocess.run(
            [*enter.split(), "sh", "-c", within, "sh", *command],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def stop(self) -> int:
        """SIGTERM to the command, and wait. The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        return self.process.returncode


def _hosts(project: Mapping[str, Any]) -> set[str]:
    """Names of the services on their networks."""
    found = {"localhost", *project["services"]}
    for service in project["services"].values():
        networks = service.get("networks", {})
        for one in networks.values() if isinstance(networks, dict) else ():
            found |= set(one.get("aliases", []))
    return found


def server_image(dockerfile: Path, environment: Path) -> Image:
    """A server's image by its Dockerfile, with `environment` in place of the image's Python.

    Raises AssertionError where the image's last stage has another form.
    """
    text = dockerfile.read_text().replace("\\\n", " ")
    final = text[text.rindex("\nFROM ") :]
    variables: dict[str, str] = {}
    for line in final.splitlines():
        if line.startswith("ENV "):
            for word in shlex.split(line.removeprefix("ENV ")):
                name, _, value = word.partition("=")
                variables[name] = value.replace("$PATH", _SYSTEM_PATH)
    (user,) = [x.split()[1] for x in final.splitlines() if x.startswith("USER ")]
    (folder,) = [x.split()[1] for x in final.splitlines() if x.startswith("WORKDIR ")]
    return Image({"/opt/bmt": environment}, variables, user, folder)


def program(name: str) -> Path:
    """A program of the host; the test skips by its name where it is not there."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not there")
    return Path(found).resolve()
