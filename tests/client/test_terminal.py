"""bmt-client on a pseudo-terminal: colors, conversations and Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time

import bmt_core
import pytest

from tests.support.http.fake_server import KEY
from tests.support.masks import make_mask

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """`bmt-client` on a pseudo-terminal of 80 columns."""

    def __init__(self, *args: str, **environment: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bmt_client", *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "COLUMNS": "80", "TERM": "xterm", **environment},
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def until(self, wanted: str, seconds: float = 20) -> str:
        """Read until `wanted` appears; returns all output so far."""
        end = time.monotonic() + seconds
        while wanted not in self.text:
            if not select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"{wanted!r} did not appear in {self.text!r}")
            if not self._read():
                raise EOFError(f"ended without {wanted!r}: {self.text!r}")
        return self.text

    def type(self, line: str) -> None:
        os.write(self.master, f"{line}\n".encode())

    def interrupt(self) -> None:
        # A signal just before a system call is handled only after the call ends.
        time.sleep(0.3)
        self.process.send_signal(signal.SIGINT)

    def end(self, seconds: float = 20) -> int:
        """Read to the end; returns the exit code."""
        end = time.monotonic() + seconds
        try:
            while select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
                if not self._read():
                    return self.process.wait(seconds)
            raise TimeoutError(f"still running after {seconds} s: {self.text!r}")
        finally:
            self.process.kill()
            os.close(self.master)

    def _read(self) -> bool:
        try:
            data = os.read(self.master, 65536)
        except OSError:  # Linux raises this when the other end is closed
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)


@pytest.fixture
def environment(server, tmp_path):
    bmt_core.save(make_mask(1), tmp_path / "math.bmt")
    return {"BMT_URL": server.url, "BMT_API_KEY": KEY}


def test_colors_on_a_terminal_unless_disabled(environment, tmp_path):
    terminal = Terminal("upload", str(tmp_path / "math.bmt"), **environment)
    assert terminal.end() == 0
    assert "\x1b[32muploaded" in terminal.text
    plain = Terminal("upload", str(tmp_path / "math.bmt"), **environment, NO_COLOR="1")
    assert plain.end() == 0
    assert "\x1b[3" not in plain.text
    assert "unchanged" in plain.text


def test_lines_fit_80_columns(environment, tmp_path):
    for args in (
        ("upload", str(tmp_path / "math.bmt"), "--name", "a" * 60, "--alias", "b" * 40),
        ("list",),
        ("versions", "a" * 60),
        ("show", "a" * 60),
    ):
        terminal = Terminal(*args, **environment)
        assert terminal.end() == 0
        lines = [CONTROL.sub("", line) for line in terminal.text.splitlines()]
        assert max(map(len, lines)) <= 80, args
    # Folded at the edge of the column, not cut.
    assert "b" * 40 in re.sub(r"[^ab]", "", terminal.text)


def test_a_conversation(environment, tmp_path):
    assert Terminal("upload", str(tmp_path / "math.bmt"), **environment).end() == 0
    chat = Terminal("chat", "math", **environment)
    chat.until("> ")
    chat.type("hello")
    chat.until("You said hello")
    chat.until(f"math@{make_mask(1).digest[:12]} ")
    # A failed turn does not end the conversation.
    chat.type("/model absent")
    chat.type("anybody?")
    chat.until("error: ")
    chat.type("/model base")
    chat.type("and you?")
    chat.until("You said and you?")
    chat.type("/exit")
    assert chat.end() == 0
    assert KEY not in chat.text


def test_delete_asks_for_confirmation(environment, tmp_path):
    assert Terminal("upload", str(tmp_path / "math.bmt"), **environment).end() == 0
    refused = Terminal("delete", "math", **environment)
    refused.until("[y/N]")
    refused.type("n")
    assert refused.end() == 1
    agreed = Terminal("delete", "math", **environment)
    agreed.until("[y/N]")
    agreed.type("y")
    assert agreed.end() == 0
    assert "deleted" in agreed.text


@pytest.mark.parametrize("command", [["list"], ["chat", "math", "hello"]])
def test_ctrl_c_is_130_without_a_traceback(command):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        terminal = Terminal(*command, BMT_URL=url)
        connection, _ = silent.accept()
        connection.recv(1)  # the request is on its way
        terminal.interrupt()
        assert terminal.end() == 130
        connection.close()
    assert "Traceback" not in terminal.text


def test_ctrl_c_at_the_prompt_is_130(environment):
    chat = Terminal("chat", "base", **environment)
    chat.until("> ")
    chat.interrupt()
    assert chat.end() == 130
    assert "Traceback" not in chat.text
