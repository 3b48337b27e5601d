"""Containers as a strict platform runs them: runc, a read-only root, no capability, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.containers.store import Image

# One request from inside a namespace.
_ASK = """
import sys, urllib.error, urllib.request
body = sys.stdin.read().encode() or None
headers = {"Content-Type": "application/json", "Authorization": "Bearer " + sys.argv[2]}
request = urllib.request.Request("http://127.0.0.1:8000" + sys.argv[1], body, headers)
try:
    answer = urllib.request.urlopen(request, timeout=300)
except urllib.error.HTTPError as error:
    answer = error
except OSError:
    answer = None
print(answer.status if answer else 0)
print(answer.read().decode() if answer else "")
"""


class Network:
    """A network namespace with the loopback interface alone, for containers of one pod."""

    def __init__(self) -> None:
        self.name = f"bmt-{uuid.uuid4().hex[:8]}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        subprocess.run(["ip", "-n", self.name, "link", "set", "lo", "up"], check=True)

    @property
    def path(self) -> str:
        return f"/var/run/netns/{self.name}"

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of port 8000 there; status 0 where nothing listens."""
        return self._ask(path, "", "")

    def post(self, path: str, body: dict, key: str) -> tuple[int, str]:
        """As `get`, with a body and a key."""
        return self._ask(path, json.dumps(body), key)

    def _ask(self, path: str, body: str, key: str) -> tuple[int, str]:
        command = ["ip", "netns", "exec", self.name, sys.executable, "-c", _ASK, path, key]
        done = subprocess.run(command, input=body, capture_output=True, text=True, check=True)
        status, _, text = done.stdout.partition("\n")
        return int(status), text

    def close(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True)


class Container:
    """A container of `image`.

    user: (UID, GID), or the image's own. volumes: folders by the path where they are mounted,
    writable; read_only: those that are not. /tmp and /dev/shm are empty memory.
    """

    def __init__(
        self,
        image: Image,
        folder: Path,
        network: Network,
        *,
        user: tuple[int, int] | None = None,
        volumes: Mapping[str, Path] = {},
        read_only: Mapping[str, Path] = {},
        env: Mapping[str, str] = {},
    ) -> None:
        self._image, self._folder, self._network = image, folder, network
        self.user = user or tuple(map(int, image.config["User"].split(":")))
        self._mounts = [(where, path, "rw") for where, path in volumes.items()]
        self._mounts += [(where, path, "ro") for where, path in read_only.items()]
        self._env = {**image.env, **env}

    def run(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """The image's program with `arguments`, to its end."""
        return self.execute([*self._image.config["Entrypoint"], *arguments], timeout=timeout)

    def execute(
        self, command: Sequence[str], timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Another program in a container of the same kind."""
        return subprocess.run(
            self._command(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *arguments: str, log: Path) -> subprocess.Popen:
        """The image's program in the background. SIGTERM reaches it through runc."""
        with log.open("wb") as output:
            return subprocess.Popen(
                self._command([*self._image.config["Entrypoint"], *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _command(self, command: Sequence[str]) -> list[str]:
        name = f"bmt-{uuid.uuid4().hex[:8]}"
        bundle = self._folder / name
        bundle.mkdir(parents=True)
        (bundle / "config.json").write_text(json.dumps(self._specification(command)))
        state = self._folder / "runc"
        return ["runc", "--root", str(state), "run", "--bundle", str(bundle), name]

    def _specification(self, command: Sequence[str]) -> dict:
        uid, gid = self.user
        memory = ["nosuid", "nodev", "mode=1777"]
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": memory},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": memory},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        ]
        for where, path, mode in self._mounts:
            options = ["rbind", mode]
            mounts.append({"destination": where, "source": str(path), "options": options})
        spaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": uid, "gid": gid},
                "args": list(command),
                "env": [f"{name}={value}" for name, value in self._env.items()],
                "cwd": self._image.config["WorkingDir"],
                "capabilities": {},
                "noNewPrivileges": True,
            },
            "root": {"path": str(self._image.root), "readonly": True},
            "mounts": mounts,
            "linux": {
                "namespaces": [*spaces, {"type": "network", "path": self._network.path}],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        }


def owned(folder: Path, user: tuple[int, int], *, by_group: bool = False) -> Path:
    """A volume as platforms hand it out: of the user, or of the user's group alone."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, 0 if by_group else user[0], user[1])
    folder.chmod(0o2770 if by_group else 0o700)
    return folder
