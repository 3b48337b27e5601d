"""Digest of the chat template that vLLM renders chats with, to compare with that of a mask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer
from vllm.exceptions import VLLMError
from vllm.renderers.chat_utils import load_chat_template

from bmt_server.settings import NO_TEMPLATE, SettingsError


def served_digest(chat_template: str | None, tokenizer: str) -> str:
    """SHA-256 of the template in hex, as the trainer writes it into a mask's metadata.

    chat_template: the value of vLLM's --chat-template; without it the template is that of
    `tokenizer`, a folder. `NO_TEMPLATE` if there is none, and "" if it cannot be found out. Raises
    SettingsError for a template that cannot be read, before vLLM does.
    """
    if chat_template is not None:
        try:
            text = load_chat_template(chat_template)
        except (OSError, ValueError, VLLMError) as error:
            raise SettingsError(
                f"--chat-template {chat_template} cannot be read ({error})"
            ) from None
        return digest(text)
    try:
        return digest(AutoTokenizer.from_pretrained(tokenizer).chat_template)
    except Exception:
        # Tokenizers that vLLM alone reads, such as Mistral's own.
        return ""


def digest(template: str | Mapping[str, Any] | None) -> str:
    """SHA-256 of a template; of several by name, of their JSON; `NO_TEMPLATE` without one."""
    if not template:
        return NO_TEMPLATE
    if not isinstance(template, str):
        if template.keys() != {"default"}:
            return hashlib.sha256(json.dumps(dict(template), sort_keys=True).encode()).hexdigest()
        template = str(template["default"])
    return hashlib.sha256(template.encode()).hexdigest()
