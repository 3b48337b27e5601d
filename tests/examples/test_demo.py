"""The demo's parts; the demo itself is what `make demo` runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "demo"
MODULES = [path.stem for path in DEMO.glob("*.py")]


@pytest.fixture
def demo(monkeypatch):
    """Lets a test import the demo's modules, and forgets them after."""
    monkeypatch.syspath_prepend(str(DEMO))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def test_the_models_bytes_are_checked(demo, monkeypatch):
    import model

    assert (model.gguf_folder() / model.GGUF).exists()
    monkeypatch.setattr(model, "SHA256", "0" * 64)
    with pytest.raises(model.ModelError, match="expected 000000000000"):
        model.gguf_folder()


def test_another_model_serves_in_its_place(demo, monkeypatch):
    import model

    monkeypatch.setenv("BMT_DEMO_MODEL", "org/other")
    assert model.demo_model() == "org/other"


def test_its_tasks_differ_and_hold_out_enough(demo, tmp_path):
    import training

    tasks = training.tasks(tmp_path)
    assert len(tasks) == 2
    assert len({t.settings["dataset"] for t in tasks}) == 2
    for task in tasks:
        assert len(task.examples) >= 400
        assert len({e.answer for e in task.examples}) > 390, "a guess must be worth nothing"


def test_plain_lines_where_there_is_no_terminal(demo, capsys):
    import display

    show = display.Display()
    with show.phase("A phase"), show.waiting("starting") as tick:
        for what in ("one", "one", "two"):
            tick(what)
    with show.counting("part", 3) as advance:
        for _ in range(3):
            advance()
    show.say("[b]no markup[/] is read")
    show.summary()
    out = capsys.readouterr().out
    assert [line.strip() for line in out.splitlines() if line.strip()][:6] == [
        "A phase",
        "starting",
        "one",
        "two",
        "0 s",
        "part: 3/3, 0 s",
    ]
    assert "[b]no markup[/] is read" in out
    assert "\r" not in out
    assert "\x1b" not in out


def processes() -> dict[int, tuple[int, str]]:
    """pid -> (parent, start time) of all that run; zombies have ended and do not count."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(folder.name)] = (int(fields[1]), fields[19])
    return found


def descendants(root: int) -> dict[int, str]:
    """pid -> start time of all that `root` began, themselves or through others."""
    running, found, last = processes(), {root: ""}, 0
    while len(found) != last:
        last = len(found)
        found |= {pid: start for pid, (parent, start) in running.items() if parent in found}
    del found[root]
    return found


def interrupted(code: str, until: str, number: int, *arguments: str) -> tuple[int, int, int]:
    """Run `code` with the demo's modules until it prints a match of `until`, then signal it.

    Returns its exit code, and the numbers of its descendants before, and of those that are left.
    """
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(DEMO)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if re.search(until, line):
                break
        else:
            raise AssertionError(f"it ended before it printed {until!r}")
        before = descendants(process.pid)
        process.send_signal(number)
        process.stdout.close()
        ended = process.wait(90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    deadline = time.monotonic() + 5
    while left := [p for p, (_, t) in processes().items() if before.get(p) == t]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return ended, len(before), len(left)


CHILD = """
import sys, processes
processes.end_like_ctrl_c()
try:
    processes.run([sys.executable, "-u", "-c", "print('up'); import time; time.sleep(100)"])
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_child_does_not_outlive_the_demo(number):
    assert interrupted(CHILD, "up", number) == (130, 1, 0)


SERVER = """
import sys, pathlib, processes
from serving import Server
processes.end_like_ctrl_c()
try:
    with Server(sys.argv[1], "smol", pathlib.Path(sys.argv[2])) as server:
        server.wait(lambda what: print(what, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.engine
@pytest.mark.operate
def test_a_starting_server_does_not_outlive_the_demo(smol, tmp_path):
    """Interrupted when engine and registry are up but the server is not ready."""
    arguments = (str(smol), str(tmp_path / "data"))
    # A stage that ends between two looks is not shown: any stage before readiness will do.
    engine = "loading the model|preparing masks|compiling the model|starting the API"
    code, before, left = interrupted(SERVER, engine, signal.SIGINT, *arguments)
    assert (code, left) == (130, 0)
    assert before >= 3, "API server, engine and registry were running"
