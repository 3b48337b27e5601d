"""vLLM 0.33."""

from bmt_server.vllm_integration.versions.moved import Moved

MOVED = Moved(
    cli_arguments="vllm.entrypoints.common.cli_args",
    cli_startup="vllm.entrypoints.common.startup",
)
