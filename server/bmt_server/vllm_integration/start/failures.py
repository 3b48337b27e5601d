"""The cause of a start that failed, in one line.

vLLM checks most settings in the process that starts it, and the rest in its engine and workers,
whose tracebacks it logs; that process then knows only that they ended. Here each of them writes the
first such error to a file of the server's statistics folder.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

FILE = "start-error"
# vLLM's message with the traceback of an engine or worker that does not start.
_MARK = "failed to start"
_MAX_CHARACTERS = 600
#: Functions of vLLM whose errors are about settings, and what they do.
_STEPS = {
    "create_engine_config": "vLLM refuses these settings",
    "validate_api_server_args": "vLLM refuses these settings",
    "create_server_socket": "cannot listen on the given --host and --port",
    "create_server_unix_socket": "cannot listen on the given --uds",
}


def record_start_errors(folder: str) -> None:
    """Let this process, an engine or a worker, write why it does not start to `folder`."""
    if folder:
        logging.getLogger("vllm").addHandler(_FirstError(Path(folder)))


class _FirstError(logging.Handler):
    def __init__(self, folder: Path) -> None:
        super().__init__(logging.ERROR)
        self._path = folder / FILE

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or _MARK not in record.getMessage():
            return
        # The first one is the cause: an engine ends because its worker did.
        with contextlib.suppress(OSError), self._path.open("x") as file:
            file.write(one_line(error))


def cause(error: BaseException, folder: str) -> str:
    """The line for `error` of a server that does not start; empty for an unknown error."""
    frames = _functions(error.__traceback__)
    for function, step in _STEPS.items():
        if function in frames:
            return f"{step}: {one_line(error)}"
    try:
        return f"the engine did not start: {(Path(folder) / FILE).read_text()}"
    except OSError:
        return ""


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; of pydantic's, what is wrong with each field."""
    errors: Any = getattr(error, "errors", None)
    if callable(errors):
        text = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in errors())
    elif isinstance(error, OSError):
        text = error.strerror or str(error)
    else:
        text = str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"


def _functions(trace: TracebackType | None) -> set[str]:
    names = set()
    while trace is not None:
        names.add(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return names
