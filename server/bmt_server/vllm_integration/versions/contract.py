"""All parts of vLLM and uvicorn that this server uses and that are no public interface.

One table for the check at start (`check.py`): the object, the form of it, the file that needs it.
Its rows are in `worker_seams.py` and `server_seams.py`.
Importing this module imports no vLLM.
"""

from __future__ import annotations

from bmt_core.library_contract import Seam

from bmt_server.vllm_integration.versions.moved import Moved
from bmt_server.vllm_integration.versions.server_seams import API, SCHEDULING
from bmt_server.vllm_integration.versions.worker_seams import COMMON, CPU, EXPERTS, WEIGHTS


def _command_line(moved: Moved) -> tuple[Seam, ...]:
    """Flags of `vllm serve` that `bmt-server serve` reads or sets."""
    return (
        Seam(f"{moved.cli_arguments}:make_arg_parser", "cli/serve.py", accepts=("parser",)),
        Seam(
            f"{moved.cli_arguments}:validate_parsed_serve_args", "cli/serve.py", accepts=("args",)
        ),
        Seam(
            f"{moved.cli_arguments}:FrontendArgs",
            "cli/serve.py",
            attributes=(
                *("middleware", "disable_uvicorn_access_log", "chat_template", "lora_modules"),
                *("host", "api_key"),
            ),
        ),
        Seam(f"{moved.cli_startup}:cli_env_setup", "cli/serve.py", accepts=()),
        Seam("vllm.utils.argparse_utils:FlexibleArgumentParser", "cli/serve.py"),
        Seam("vllm.engine.arg_utils:EngineArgs", "offline.py", attributes=("model",)),
        Seam(
            "vllm.distributed.parallel_state:cleanup_dist_env_and_memory",
            "rollout_engine.py",
            accepts=(),
        ),
        Seam(
            "vllm.engine.arg_utils:AsyncEngineArgs",
            "cli/serve.py",
            attributes=(
                *("model", "revision", "served_model_name", "tokenizer", "dtype", "enable_lora"),
                *("enforce_eager", "shutdown_timeout", "max_num_queued_reqs", "nnodes"),
                *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
                *("data_parallel_size_local", "scheduler_cls", "additional_config"),
            ),
        ),
    )


def seams(
    moved: Moved, *, cpu: bool, all_processes: bool, experts: bool = False
) -> tuple[Seam, ...]:
    """The seams of a vLLM whose modules lie at `moved`.

    cpu: with those of vLLM's CPU backend; all_processes: only those that each process needs;
    experts: with those of models whose experts have masks.
    """
    common = COMMON + WEIGHTS + (CPU if cpu else ()) + (EXPERTS if experts else ())
    if all_processes:
        return common
    return common + SCHEDULING + API + _command_line(moved)
