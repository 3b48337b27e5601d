"""Python programs in processes of a fork server that has imported the trainer.

`python FILE` and `python -m MODULE` without their imports: those of TRL take a core ten seconds.
What a program does while it is imported is for tests that start one whole.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "bmt_trainer.cli.main",
        "bmt_trainer.methods.grpo",
        "bmt_trainer.methods.preferences.dpo",
        "bmt_trainer.methods.preferences.kto",
        "bmt_trainer.methods.sdft",
        "bmt_trainer.methods.sft",
        "tests.support.training.forked",
    ]
)


def start(
    arguments: Sequence[object], out: Path, err: Path, env: Mapping[str, str] | None = None
) -> BaseProcess:
    """`python ARGUMENTS`, FILE or `-m MODULE` first; out, err: files that it appends to.

    env: its environment, by default this process's as it is now.
    """
    given = list(map(str, arguments))
    process = context.Process(
        target=_program, args=(given, str(out), str(err), dict(os.environ if env is None else env))
    )
    process.start()
    return process


def run(
    arguments: Sequence[object],
    *,
    processes: Sequence[Mapping[str, str]] = ({},),
    timeout: float = 120,
) -> CompletedProcess[str]:
    """Run `python ARGUMENTS` to its end, once with each of the environments `processes` at once.

    They add to this process's own. The exit code is the first that is not 0; what all print is
    in the order of `processes`. Raises TimeoutExpired, with none left.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = [
            (Path(scratch, f"{at}.out"), Path(scratch, f"{at}.err")) for at in range(len(processes))
        ]
        started = [
            start(arguments, out, err, {**os.environ, **env})
            for (out, err), env in zip(files, processes, strict=True)
        ]
        until = time.monotonic() + timeout
        for process in started:
            process.join(max(0.0, until - time.monotonic()))
        late = [process for process in started if process.exitcode is None]
        for process in late:
            process.kill()
            process.join()
        said = ["".join(file.read_text() for file in kind) for kind in zip(*files, strict=True)]
    if late:
        raise TimeoutExpired(list(map(str, arguments)), timeout, *said)
    code = next((p.exitcode for p in started if p.exitcode), 0)
    return CompletedProcess(list(map(str, arguments)), code, *said)


def _program(arguments: list[str], out: str, err: str, env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, (name, path) in enumerate((("stdout", out), ("stderr", err)), start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        setattr(sys, name, os.fdopen(stream, "w", buffering=1, closefd=False))
    import torch

    # The environment of the fork server decided it when torch was imported.
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
