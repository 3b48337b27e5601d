"""Check that the parsers that flags name fit the model's tokenizer, before the engine starts."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from vllm.reasoning import ReasoningParserManager
from vllm.tokenizers import cached_get_tokenizer
from vllm.tool_parsers import ToolParserManager

from bmt_server.settings import SettingsError
from bmt_server.vllm_integration.start.failures import one_line


def check_parsers(args: Namespace) -> None:
    """Make each parser as vLLM will, in its engine or at the first request.

    Raises SettingsError with the flag, its value, the reason and the fix.
    """
    options = args.structured_outputs_config
    plugin = args.reasoning_parser_plugin or options.reasoning_parser_plugin
    _check(
        "--reasoning-parser",
        args.reasoning_parser or options.reasoning_parser,
        args,
        plugin and (lambda: ReasoningParserManager.import_reasoning_parser(plugin)),
        ReasoningParserManager.get_reasoning_parser,
        ReasoningParserManager.list_registered,
    )
    tools = args.tool_parser_plugin
    _check(
        "--tool-call-parser",
        args.tool_call_parser,
        args,
        tools and (lambda: ToolParserManager.import_tool_parser(tools)),
        ToolParserManager.get_tool_parser,
        ToolParserManager.list_registered,
    )


def _check(
    flag: str,
    name: str | None,
    args: Namespace,
    import_plugin: Any,
    parser: Callable[[str], Any],
    registered: Callable[[], list[str]],
) -> None:
    if not name or args.skip_tokenizer_init:
        return
    if import_plugin:
        import_plugin()
    if name not in registered():
        raise SettingsError(f"{flag} {name} is none of {', '.join(sorted(registered()))}")
    tokenizer = cached_get_tokenizer(
        args.tokenizer or args.model,
        tokenizer_mode=args.tokenizer_mode,
        trust_remote_code=args.trust_remote_code,
        revision=args.tokenizer_revision,
    )
    try:
        parser(name)(tokenizer)
    except Exception as error:  # each parser raises its own
        raise SettingsError(
            f"{flag} {name} does not fit the tokenizer of {args.tokenizer or args.model} "
            f"({one_line(error)}); name the parser of this model's family, or remove the flag"
        ) from None
