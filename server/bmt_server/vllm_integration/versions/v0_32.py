"""vLLM 0.32."""

from bmt_server.vllm_integration.versions.moved import Moved

MOVED = Moved(
    cli_arguments="vllm.entrypoints.launchers.cli_args",
    cli_startup="vllm.entrypoints.serve.utils.api_utils",
)
