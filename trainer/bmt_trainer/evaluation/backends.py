"""Backends of an evaluation: transformers or vLLM in this process, or a running server.

Each maps the names `base` and, if there is a mask, `mask` to a function that generates. All decode
greedily, against the checkpoint's own generation settings.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import bmt_core
from bmt_core.config import arithmetic, config_warning
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bmt_trainer import models
from bmt_trainer.console import Display, hide_library_progress
from bmt_trainer.data.encoding import complete_special_tokens, render
from bmt_trainer.data.examples import Example, with_template_kwargs
from bmt_trainer.data.fitting import answer_room
from bmt_trainer.errors import ConfigError, RolloutError
from bmt_trainer.evaluation.completions import CompletionReader
from bmt_trainer.evaluation.generate import Generate, generate, stop_at_end_of_turn
from bmt_trainer.evaluation.server_backend import LocalBase, by_server
from bmt_trainer.evaluation.thoughts import Completion, Thoughts
from bmt_trainer.masking.apply import apply
from bmt_trainer.templates.chat_templates import check_template_kwargs, template_digest

#: Entry point group of engines in this process, each (folder, max_num_seqs=) -> an object with
#: generate(prompts, max_tokens, mask=None), token ids to token ids. The server registers `vllm`.
ENGINES = "bmt.evaluation_engines"


def by_options(
    model: str,
    mask: Path | None,
    *,
    engine: str,
    server: str | None,
    base_name: str | None,
    mask_name: str | None,
    batch_size: int,
    device: str,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    thoughts: str | None = None,
    fp32: bool = False,
) -> dict[str, Generate]:
    """The backend that a command's options choose. Raises ConfigError.

    engine: auto, vllm or transformers; auto is vLLM if it is installed and `device` is auto.
    server: URL, whose models `base_name` (by default `model`) and `mask_name` are used instead.
    chat_template: as in `models.load_tokenizer`; template_kwargs: its arguments; thoughts: the
    setting of their delimiters (`Thoughts.of_setting`); fp32: weights, of transformers.
    """
    Thoughts.of_setting(thoughts)
    if server is not None:
        if mask is not None:
            raise ConfigError(
                f"mask: {server} serves only masks of its registry; publish {mask.name} there "
                "(bmt-client upload) and name it by --mask-name, without --mask"
            )
        names = {"base": base_name or model} | ({"mask": mask_name} if mask_name else {})
        base = _local_base(model, server, chat_template)
        reader = CompletionReader(None if base is None else base.tokenizer, thoughts)
        made = by_server(
            server,
            names,
            concurrency=batch_size,
            reader=reader,
            base=base,
            checked=True,
            named=base_name is not None,
        )
    elif base_name is not None or mask_name is not None:
        raise ConfigError("--base-name and --mask-name are names on a server; add --server URL")
    else:
        chosen: dict[str, Any] = {
            "batch_size": batch_size,
            "chat_template": chat_template,
            "thoughts": thoughts,
        }
        if engine == "vllm" or (engine == "auto" and device == "auto" and has_vllm()):
            made = by_vllm(model, mask, **chosen)
        else:
            made = by_transformers(model, mask, device=device, fp32=fp32, **chosen)
    if not template_kwargs:
        return made
    if server is None:
        tokenizer = models.load_tokenizer(models.checkpoint_folder(model), chat_template)
        check_template_kwargs(tokenizer, template_kwargs)

    def with_kwargs(
        generate: Generate, examples: Sequence[Example], tokens: int
    ) -> list[Completion]:
        return generate(with_template_kwargs(examples, template_kwargs), tokens)

    return {name: partial(with_kwargs, generate) for name, generate in made.items()}


def _local_base(model: str, server: str, chat_template: str | None) -> LocalBase | None:
    """The base of a server's models, if it is on this machine. Raises ConfigError."""
    folder = models.local_folder(model)
    if folder is not None:
        tokenizer = models.load_tokenizer(folder, chat_template)
        context = models.context_length(folder)
        return LocalBase(bmt_core.fingerprint(folder), tokenizer, context)
    if chat_template is not None:
        raise ConfigError(
            f"chat_template: {model} is not on this machine, so {server} renders chats by its own "
            "template; name the checkpoint by --model, or start the server with bmt-server serve "
            "--chat-template FILE and leave out --chat-template here"
        )
    Display().say(
        f"{model} is not on this machine: the base of {server} is not compared with it, and chats "
        "are rendered by the server's template"
    )
    return None


def by_transformers(
    model: str,
    mask: Path | None,
    *,
    batch_size: int,
    device: str,
    chat_template: str | None = None,
    thoughts: str | None = None,
    fp32: bool = False,
) -> dict[str, Generate]:
    """Base and mask as two transformers models, each loaded at its first prompts.

    Raises bmt_core.BaseMismatch for a mask of another base.
    """
    folder, torch_device = models.checkpoint_folder(model), models.pick_device(device)
    loaded = _load(mask, folder)
    tokenizer = models.load_tokenizer(folder, chat_template)
    warn_of_template(loaded, tokenizer)
    complete_special_tokens(tokenizer)
    reader = CompletionReader(tokenizer, thoughts)
    display = Display()

    @cache
    def network(masked: bool) -> PreTrainedModel:
        with hide_library_progress():
            made = models.load_model(folder, torch_device, fp32=fp32)
        if (line := stop_at_end_of_turn(made, tokenizer)) is not None:
            display.say(line)
        if masked and loaded is not None:
            apply(loaded, made, base_fingerprint=loaded.base.fingerprint)
        return made

    def answer(name: str, examples: Sequence[Example], tokens: int) -> list[Completion]:
        tokens = _room(tokenizer, folder, examples, tokens, display)
        model = network(name == "mask")
        with display.stage(f"answers of {name}", len(examples)) as advance:
            return generate(
                model,
                tokenizer,
                examples,
                max_new_tokens=tokens,
                batch_size=batch_size,
                advance=advance,
                reader=reader,
            )

    names = ("base",) if mask is None else ("base", "mask")
    return {name: partial(answer, name) for name in names}


def _load(mask: Path | None, folder: Path) -> bmt_core.Mask | None:
    if mask is None:
        return None
    loaded = bmt_core.load(mask, expect_base=bmt_core.fingerprint(folder))
    if (warning := config_warning(loaded.metadata, arithmetic(folder))) is not None:
        Display().say(warning)
    return loaded


def _room(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    examples: Sequence[Example],
    tokens: int,
    display: Display,
) -> int:
    """New tokens that the model's context leaves to all answers. Raises DataError for none."""
    prompts = ((e.location, len(render(tokenizer, e))) for e in examples)
    room, line = answer_room(prompts, tokens, models.context_length(folder))
    if line is not None:
        display.say(line)
    return room


def warn_of_template(mask: bmt_core.Mask | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say so if a mask was trained with another chat template than the tokenizer's."""
    if mask is None or "chat_template" not in mask.metadata:
        return
    trained, used = mask.metadata["chat_template"], template_digest(tokenizer)
    if trained != used:
        Display().say(
            f"warning: the mask was trained with the chat template {str(trained)[:12]}, and "
            f"prompts are rendered with {str(used)[:12]}; give the template of the training by "
            "--chat-template"
        )


def has_vllm() -> bool:
    """True if vLLM and the server's engine for it are installed."""
    registered = importlib.metadata.entry_points(group=ENGINES, name="vllm")
    return bool(registered) and importlib.util.find_spec("vllm") is not None


def by_vllm(
    model: str,
    mask: Path | None,
    *,
    batch_size: int,
    chat_template: str | None = None,
    thoughts: str | None = None,
) -> dict[str, Generate]:
    """Base and mask on one vLLM engine with at most `batch_size` sequences in flight.

    The engine starts at the first prompts. Raises ConfigError without vLLM, and
    bmt_core.BaseMismatch for a mask of another base; the functions raise RolloutError if vLLM
    fails.
    """
    if not has_vllm():
        raise ConfigError(
            "engine: vllm is not installed; pip install 'bmt-adapters[cpu]' or [gpu], or use "
            "--engine transformers"
        )
    engine = _Vllm(models.checkpoint_folder(model), batch_size, chat_template, thoughts)
    backend: dict[str, Generate] = {"base": engine.answers}
    if (loaded := _load(mask, engine.folder)) is not None:
        warn_of_template(loaded, engine.tokenizer)
        backend["mask"] = partial(engine.answers, mask=loaded)
    return backend


class _Vllm:
    """The registered vLLM engine, with the tokenization of training before and after it."""

    def __init__(
        self,
        folder: Path,
        batch_size: int,
        chat_template: str | None = None,
        thoughts: str | None = None,
    ) -> None:
        self.folder, self._batch_size = folder, batch_size
        self.tokenizer = models.load_tokenizer(folder, chat_template)
        self._reader = CompletionReader(self.tokenizer, thoughts)

    @cached_property
    def _ends(self) -> set[int]:
        """The tokens at which vLLM ends an answer."""
        return {*models.end_tokens(self.folder), self.tokenizer.eos_token_id}

    @cached_property
    def _engine(self) -> Any:
        # vLLM logs to standard output by default, which is for results.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        Display().say("starting vLLM; --engine transformers runs without it")
        registered = next(iter(importlib.metadata.entry_points(group=ENGINES, name="vllm")))
        return registered.load()(str(self.folder), max_num_seqs=self._batch_size)

    def answers(
        self, examples: Sequence[Example], tokens: int, mask: bmt_core.Mask | None = None
    ) -> list[Completion]:
        tokens = _room(self.tokenizer, self.folder, examples, tokens, Display())
        ids = [render(self.tokenizer, example) for example in examples]
        try:
            completions = self._engine.generate(ids, tokens, mask)
        except Exception as error:  # whatever vLLM's processes raise
            raise RolloutError(
                f"vLLM did not answer ({type(error).__name__}: {error}); --engine transformers "
                "runs without it"
            ) from error
        return [
            self._reader.of_ids(
                made, example, cut=len(made) >= tokens and self._ends.isdisjoint(made[-1:])
            )
            for made, example in zip(completions, examples, strict=True)
        ]
