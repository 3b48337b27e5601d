"""Structured outputs: one backend for the whole run of a server, and reasons that name it.

With `auto`, vLLM validates each request against whatever backend can do it, and its engine
keeps the backend of the first one (`v1/structured_output/__init__.py`, `grammar_init`): that one
would decide what all later ones may ask. xgrammar is the backend that `auto` tries first, and the
only one that compiles the structural tags of tool calls; Mistral's own tokenizers, whose tool
calls are Lark grammars with special tokens, have guidance.
"""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import Any

from vllm.exceptions import VLLMError, VLLMValidationError
from vllm.tokenizers.registry import resolve_tokenizer_args

from bmt_server.vllm_integration.repetitions import check_repetitions

GENERAL_BACKEND, MISTRAL_BACKEND = "xgrammar", "guidance"
#: Backend of forced tool calls as structural tags; with others they are JSON schemas.
TAG_BACKEND = "xgrammar"
STRICT_TOOLS_ENV = "VLLM_ENFORCE_STRICT_TOOL_CALLING"
MAX_REASON_CHARACTERS = 400

_FLAG = "--structured-outputs-config"
# Place in a backend's own source, which its messages begin with.
_SOURCE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")


class BackendChoice:
    """The backend that the operator names, or else the one that fits the tokenizer.

    parser: of vLLM's flags, before they are parsed. Options of the backend may be given without its
    name.
    """

    def __init__(self, parser: ArgumentParser) -> None:
        self._named = False
        action = next(a for a in parser._actions if _FLAG in a.option_strings)
        self._parse: Any = action.type
        action.type = self._parse_config

    def _parse_config(self, text: str) -> Any:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict):
            self._named = value.get("backend", "auto") != "auto"
            if not self._named:
                alone = value.get("disable_additional_properties")
                self._named = bool(alone)
                # vLLM accepts options only with the name of a backend that has them.
                value["backend"] = MISTRAL_BACKEND if alone else GENERAL_BACKEND
                text = json.dumps(value)
        return self._parse(text)

    def apply(self, args: Namespace) -> str:
        """Set the backend in parsed arguments and return it; call when the model is known."""
        if not self._named:
            args.structured_outputs_config = replace(
                args.structured_outputs_config, backend=_backend_of(args)
            )
        return str(args.structured_outputs_config.backend)


def _backend_of(args: Namespace) -> str:
    try:
        mode, *_ = resolve_tokenizer_args(
            args.tokenizer or args.model,
            tokenizer_mode=args.tokenizer_mode,
            revision=args.tokenizer_revision,
        )
    except (OSError, ValueError, VLLMError):
        # The engine reports an unreadable tokenizer.
        mode = args.tokenizer_mode
    return MISTRAL_BACKEND if mode == "mistral" else GENERAL_BACKEND


def validate_for_backend(original: Any, params: Any, *args: Any) -> None:
    """Run vLLM's check of a request's structured outputs; its error names backend and reason.

    original: `SamplingParams._validate_structured_outputs` (vLLM's `sampling_params.py`).
    Raises VLLMValidationError, which is a 400, for every failure: all depend on the request alone.
    """
    try:
        if params.structured_outputs is not None:
            check_repetitions(params.structured_outputs)
        original(params, *args)
    except Exception as error:
        backend = getattr(params.structured_outputs, "_backend", None) or "auto"
        texts = [_SOURCE.sub("", str(e)).strip() for e in (error, error.__cause__) if e]
        reason = texts[0] if texts[-1] in texts[0] else f"{texts[0]} {texts[1]}"
        raise VLLMValidationError(
            f"the structured-output backend of this server, {backend}, cannot do this: "
            f"{reason[:MAX_REASON_CHARACTERS] or type(error).__name__}",
            parameter="structured_outputs",
        ) from None
