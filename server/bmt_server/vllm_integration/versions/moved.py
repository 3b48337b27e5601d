"""Modules of vLLM that lie in another place in each supported version."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moved:
    """Import names.

    cli_arguments: `make_arg_parser`, `validate_parsed_serve_args`, `FrontendArgs`.
    cli_startup: `cli_env_setup`.
    """

    cli_arguments: str
    cli_startup: str
