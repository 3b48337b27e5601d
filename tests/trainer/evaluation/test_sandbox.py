"""Programs of a model in the sandbox: attacks, each on something real outside of it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.sandbox import inside, programs
from bmt_trainer.evaluation.sandbox.programs import Sandbox

SMALL = Sandbox(cpu_seconds=1, seconds=3, memory_bytes=256 << 20, files_bytes=1 << 20)


def test_a_program_passes_if_it_runs_to_its_end():
    assert Sandbox().passes("import math, re, random, collections, hashlib\nassert 2 + 2 == 4")
    assert Sandbox().passes("print('a' * 100_000)\nimport sys; print(1, file=sys.stderr)")
    assert Sandbox().passes("import threading as t; x = t.Thread(target=int); x.start(); x.join()")
    assert Sandbox().passes("import tempfile; f = tempfile.TemporaryFile(); f.write(b'1')")
    assert Sandbox().passes("def f():\n  return 'ü\u2028'\nassert len(f()) == 2")


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "x = (",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        # What it writes to its answer's pipe is no token.
        "import os\nfor fd in range(64):\n  try: os.write(fd, b'ready\\n' + b'0' * 32)\n"
        "  except OSError: pass\nos._exit(0)",
        "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    ],
)
def test_a_program_that_ends_early_does_not_pass(program):
    assert not SMALL.passes(program)


@pytest.mark.found
def test_no_socket_reaches_a_server(tmp_path):
    path = str(tmp_path / "s")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(path)
        local.listen()
        for server, call in (
            (tcp, f"socket.create_connection({tcp.getsockname()!r})"),
            (local, f"socket.socket(socket.AF_UNIX).connect({path!r})"),
        ):
            # The same works outside.
            subprocess.run([sys.executable, "-c", f"import socket; {call}"], check=True)
            server.accept()[0].close()
            assert not SMALL.passes(f"import socket; {call}")
            server.settimeout(0.2)
            with pytest.raises(TimeoutError):
                server.accept()
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"):
        assert SMALL.passes(
            f"import socket\ntry: socket.socket(socket.{family}, socket.SOCK_RAW)\n"
            "except PermissionError: pass\nelse: raise SystemExit"
        )


@pytest.mark.found
def test_no_pair_of_sockets_reaches_a_server(tmp_path):
    # A datagram of a pair goes to any path, whatever the network.
    path = str(tmp_path / "s")
    send = f"import socket; socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b'x', {path!r})"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(0.2)
        subprocess.run([sys.executable, "-c", send], check=True)
        assert server.recv(1) == b"x"
        assert not SMALL.passes(send)
        with pytest.raises(TimeoutError):
            server.recv(1)


@pytest.mark.found
def test_no_device_is_opened():
    # Terminals and accelerators are files that a read-only mount lets be written.
    master, slave = os.openpty()
    try:
        for path, flag in ((os.ttyname(slave), "RDWR"), ("/dev/null", "WRONLY")):
            assert not SMALL.passes(f"import os; os.open({path!r}, os.O_{flag} | os.O_NOCTTY)")
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.found
@pytest.mark.parametrize(
    "call",
    [
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "subprocess.run(['/bin/true'])",
        "os.execv('/bin/true', ['true'])",
        "os.system('true') and 1 / 0",
        "multiprocessing.Process(target=int).start()",
    ],
)
def test_no_process_is_started(call):
    assert not SMALL.passes(f"import os, subprocess, multiprocessing; {call}")


@pytest.mark.found
def test_time_is_bounded():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert not SMALL.passes("while True: pass")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2
    began = time.monotonic()
    assert not SMALL.passes("import time; time.sleep(100)")
    # Signals that would end it are ignored, and threads go on.
    assert not SMALL.passes(
        "import signal, threading, time\n"
        "for s in range(1, 32):\n  try: signal.signal(s, signal.SIG_IGN)\n  except OSError: pass\n"
        "threading.Thread(target=time.sleep, args=(100,)).start()\n"
        "while True: time.sleep(1)"
    )
    assert time.monotonic() - began < 60


@pytest.mark.found
@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(1 << 30)",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "import mmap; mmap.mmap(-1, 1 << 30)",
        "import os; os.ftruncate(os.memfd_create('a'), 1 << 30)",
        "import threading, time\nfor _ in range(9999):\n"
        "  threading.Thread(target=time.sleep, args=(100,), daemon=True).start()",
    ],
)
def test_memory_is_bounded(program):
    assert not SMALL.passes(program)


@pytest.mark.found
def test_files_are_read_only_and_the_folder_is_bounded(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    shared = Path(tempfile.gettempdir()) / "bmt-new"
    for path in (kept, tmp_path / "new", shared, Path("/proc/sys/kernel/hostname")):
        assert not SMALL.passes(f"open({str(path)!r}, 'a').write('x')"), path
    assert not SMALL.passes(f"import os; os.remove({str(kept)!r})")
    assert not SMALL.passes(f"import os; os.chmod({str(kept)!r}, 0o777)")
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "as it was"
    assert not shared.exists()
    folder = inside.FOLDER
    assert SMALL.passes(f"open('{folder}/a', 'wb').write(bytes(100_000))")
    assert not SMALL.passes(f"open('{folder}/a', 'wb').write(bytes(2 << 20))")
    files = f"for n in range(9): open(f'{folder}/{{n}}', 'wb').write(bytes(200_000))"
    assert not SMALL.passes(files)
    assert not SMALL.passes(f"for n in range(999): open(f'{folder}/{{n}}', 'wb').close()")
    assert not Path(folder, "a").exists()


@pytest.mark.found
def test_no_other_process_is_seen_or_ended():
    with subprocess.Popen(["sleep", "100"]) as other:
        for pid in (os.getpid(), os.getppid(), other.pid):
            assert not SMALL.passes(f"import os; os.kill({pid}, 9)") or other.poll() is None
        assert not SMALL.passes("import os; os.kill(-1, 9); os.kill(os.getppid(), 9); 1 / 0")
        assert SMALL.passes(
            "import os\nseen = [p for p in os.listdir('/proc') if p.isdigit()]\n"
            "assert set(map(int, seen)) <= {1, 2, os.getpid()}, seen"
        )
        assert other.poll() is None
        other.kill()


@pytest.mark.found
def test_no_right_is_gained():
    assert SMALL.passes(
        "import ctypes, errno, os\n"
        "status = open('/proc/self/status').read()\n"
        "for name in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'):\n"
        "  assert int(status.split(name + ':')[1].split()[0], 16) == 0, name\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for flag in (0x10000000, 0x20000, 0x40000000):\n"
        "  assert libc.unshare(flag) < 0\n"
        "assert libc.mount(b'/', b'/', None, 32 | 4096, None) < 0\n"
        "assert libc.umount2(b'/dev/shm', 2) < 0\n"
        "assert libc.ptrace(16, 1, 0, 0) < 0\n"
    )


def test_the_environment_has_no_keys(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert SMALL.passes("import os; assert 'HF_TOKEN' not in os.environ")
    assert not SMALL.passes(f"open('/proc/{os.getpid()}/environ').read()")


def test_nothing_stays_when_the_run_is_killed():
    code = (
        "import os, signal, subprocess, threading\n"
        "from bmt_trainer.evaluation.sandbox import programs\n"
        "class Shown(subprocess.Popen):\n"
        "  def __init__(self, *a, **k):\n"
        "    super().__init__(*a, **k)\n"
        "    print(self.pid, flush=True)\n"
        "subprocess.Popen = Shown\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})\n"
        "threading.Timer(1, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
        "programs.Sandbox(seconds=3).passes('import time; time.sleep(99)')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL
    until = time.monotonic() + 20
    while _processes(int(run.stdout)):
        assert time.monotonic() < until
        time.sleep(0.1)


def _processes(group: int) -> list[int]:
    """Processes of a group that have not ended; those of tests that run at once have others."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        # Whoever takes orphans in may leave them as zombies.
        if int(of) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_where_nothing_can_be_isolated_nothing_runs(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    program = f"open({str(marker)!r}, 'w')"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"unshare .*is missing"):
        SMALL.passes(program)
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1\n")
    unshare.chmod(0o755)
    with pytest.raises(ConfigError, match=r"Operation not permitted\); allow"):
        SMALL.passes(program)
    unshare.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ConfigError, match=r"ended, or was not ready within 3 s\); allow"):
        SMALL.passes(program)
    # Without namespaces the script stops before it changes the machine's own mounts.
    unshare.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
    with pytest.raises(ConfigError, match="not the first process of a namespace"):
        SMALL.passes(program)
    assert not marker.exists()
    with pytest.raises(ConfigError, match="cannot be isolated"):
        programs.check()


@pytest.mark.found
@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="no autogroups here")
def test_a_program_has_the_priority_of_who_runs_it():
    code = (
        "import os; os.nice(7)\n"
        "from bmt_trainer.evaluation.sandbox.programs import Sandbox\n"
        "program = \"n = open('/proc/self/autogroup').read().split()[-1]\"\n"
        "print(Sandbox().result(program, 'n'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "7"
