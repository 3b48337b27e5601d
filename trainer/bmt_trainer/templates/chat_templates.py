"""Chat templates of models: reading of files, the arguments that they take, and their digests."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import TemplateError, meta
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from bmt_trainer.errors import ConfigError, DataError
from bmt_trainer.settings import expanded
from bmt_trainer.templates import shipped

#: Variables that rendering sets itself, or that are arguments of its own.
_RENDERED = {
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
    *("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"),
}


def read_template(name: str) -> str:
    """The text of a chat template: of a file, or of this package's by name. Raises ConfigError."""
    path = expanded(name)
    if path.is_file():
        try:
            # Line ends are translated, as vLLM does when it reads its --chat-template.
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"chat_template: {name} is not UTF-8 ({error.reason})") from None
        except OSError as error:
            raise ConfigError(f"chat_template: {name} cannot be read ({error.strerror})") from None
    elif name in shipped.NAMES:
        text = shipped.text_of(name)
    else:
        raise ConfigError(
            f"chat_template: {name!r} is neither a file nor one of this package's templates "
            f"({', '.join(shipped.NAMES)})"
        )
    if not text.strip():
        raise ConfigError(f"chat_template: {name} is empty")
    template_variables(text, name)
    return text


def template_variables(template: str, name: str = "the template") -> set[str]:
    """The variables that a chat template reads. Raises ConfigError if it is no Jinja template."""
    try:
        # The environment in which transformers renders templates.
        environment = _compile_jinja_template(template).environment
        found = meta.find_undeclared_variables(environment.parse(template))
        return set(found) - environment.globals.keys()
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise ConfigError(
            f"chat_template: {name} is not a Jinja template ({error.message}{where})"
        ) from None


def check_template_kwargs(
    tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any] | None
) -> None:
    """Raise ConfigError for arguments that the tokenizer's chat template does not read."""
    if not kwargs:
        return
    if not _templates(tokenizer):
        raise ConfigError("chat_template_kwargs: the model has no chat template; set chat_template")
    known = _arguments(tokenizer)
    if unknown := sorted(kwargs.keys() - known):
        raise ConfigError(
            f"chat_template_kwargs: the chat template does not read {', '.join(unknown)}; it reads "
            f"{', '.join(sorted(known)) or 'no arguments'}"
        )


def check_row_kwargs(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[tuple[str, Mapping[str, Any]]]
) -> None:
    """Raise DataError for a row's argument that the tokenizer's chat template does not read.

    rows: each row's location, and its `chat_template_kwargs`.
    """
    known: set[str] | None = None
    for location, kwargs in rows:
        if not kwargs:
            continue
        known = _arguments(tokenizer) if known is None else known
        if unknown := sorted(kwargs.keys() - known):
            raise DataError(
                f"{location}: chat_template_kwargs: the chat template does not read "
                f"{', '.join(unknown)}; it reads {', '.join(sorted(known)) or 'no arguments'}"
            )


def _arguments(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The arguments that the tokenizer's chat templates read."""
    texts = _templates(tokenizer).values()
    known = set[str]().union(*(template_variables(text) for text in texts))
    return known - _RENDERED - set(tokenizer.special_tokens_map)


def _templates(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, str]:
    template = tokenizer.chat_template
    if not template:
        return {}
    return {"default": template} if isinstance(template, str) else dict(template)


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of the tokenizer's chat template, in hex; None without one.

    Of several templates: of them as JSON, by name. `bmt-server` computes the same digest of the
    template that it serves.
    """
    templates = _templates(tokenizer)
    if not templates:
        return None
    if templates.keys() == {"default"}:
        return hashlib.sha256(templates["default"].encode()).hexdigest()
    return hashlib.sha256(json.dumps(templates, sort_keys=True).encode()).hexdigest()


def template_for(
    metadata: Mapping[str, Any], own: str | None, chat_template: str | None
) -> tuple[str | None, str | None]:
    """The chat template to write into a mask's checkpoint, None for its own; and a line on it.

    metadata: of the mask, which names the template of its training by its digest; own: digest of
    the checkpoint's; chat_template: a name for `read_template` that the user gave. Raises
    ConfigError.
    """
    trained = metadata.get("chat_template", own)
    if chat_template is not None:
        text = read_template(chat_template)
        given = hashlib.sha256(text.encode()).hexdigest()
        if given == trained:
            return text, None
        return text, (
            f"warning: {chat_template} is not the chat template of the mask's training, whose "
            f"SHA-256 is {trained or 'none: it had no template'}"
        )
    if trained == own:
        return None, None
    for name in shipped.NAMES:
        text = shipped.text_of(name)
        if hashlib.sha256(text.encode()).hexdigest() == trained:
            return text, f"the checkpoint gets the chat template {name}, as in the mask's training"
    return None, (
        "warning: the mask was trained with another chat template than the checkpoint's, SHA-256 "
        f"{trained or 'none: it had no template'}; give it by --chat-template, or chats are "
        "rendered differently than in training"
    )
