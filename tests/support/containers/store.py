"""Images and containers of one test, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Image:
    """A built image, mounted. root: its files. config: as `docker inspect` prints it."""

    name: str
    root: Path
    config: dict

    @property
    def env(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self.config["Env"])


class Store:
    """buildah with storage in `folder`. The overlay driver where the kernel has it, else vfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._driver = "overlay" if "overlay" in Path("/proc/filesystems").read_text() else "vfs"

    def buildah(self, *arguments: str, log: Path | None = None) -> str:
        """Run it. Returns its output. Raises AssertionError with the end of what it printed."""
        command = ["buildah", "--root", str(self.folder / "root")]
        command += ["--runroot", str(self.folder / "run"), "--storage-driver", self._driver]
        env = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.folder)}
        done = subprocess.run(
            [*command, *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if log is None else subprocess.STDOUT,
            text=True,
            check=False,
        )
        if log is not None:
            log.write_text(done.stdout)
        assert done.returncode == 0, (
            f"{arguments}\n{done.stdout[-3000:]}{(done.stderr or '')[-3000:]}"
        )
        return done.stdout

    def build(
        self,
        file: Path,
        context: Path,
        tag: str,
        arguments: Mapping[str, str],
        *,
        options: Sequence[str] = (),
    ) -> Path:
        """Build an image. Returns the log of the build."""
        log = self.folder / f"{tag.replace('/', '-')}.log"
        command = ["bud", "--pull=never", "--network", "host", "--layers=false", "-t", tag]
        command += [word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))]
        self.buildah(*command, *options, "-f", str(file), str(context), log=log)
        return log

    def has(self, tag: str) -> bool:
        """True where the image is there."""
        names = self.buildah("images", "--json")
        return any(f"{tag}:latest" in image["names"] for image in json.loads(names or "[]") or [])

    def mount(self, tag: str) -> Image:
        container = self.buildah("from", "--pull-never", tag).strip()
        root = Path(self.buildah("mount", container).strip())
        described = json.loads(self.buildah("inspect", "--type", "image", tag))
        return Image(tag, root, described["OCIv1"]["config"])

    def close(self) -> None:
        """Remove everything: containers with their mounts, images, the folder."""
        self.buildah("rm", "--all")
        self.buildah("rmi", "--all", "--force")
        # The overlay driver binds its folder to itself.
        for place in (self.folder / "root" / self._driver, self.folder / "root"):
            if place.is_mount():
                subprocess.run(["umount", str(place)], check=True)
        shutil.rmtree(self.folder)
