"""Who answers an evaluation's prompts: vLLM or transformers here, or a running server.

All of them greedily, whatever sampling the checkpoint's own settings recommend.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bmt_core

from bmt_trainer import models
from bmt_trainer.console import Display
from bmt_trainer.data.encoding import render
from bmt_trainer.data.examples import Message
from bmt_trainer.errors import ConfigError, RolloutError
from bmt_trainer.evaluation.generate import NEUTRAL_SAMPLING, generate
from bmt_trainer.masking.apply import apply

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bmt_trainer.evaluation.suites import Answer


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
) -> dict[str, Answer]:
    """`base`, and `mask` where there is one, by what a command's options name.

    On a server the base's name is by default `model`, as vLLM serves it. Raises ConfigError.
    """
    if server is not None:
        if mask is not None:
            raise ConfigError(
                f"mask: {server} answers by the masks that it holds; publish {mask.name} there "
                "(bmt-client upload) and name it by --mask-name, without --mask"
            )
        names = {"base": base_name or model} | ({"mask": mask_name} if mask_name else {})
        return by_server(server, names, at_once=batch_size)
    if base_name is not None or mask_name is not None:
        raise ConfigError("--base-name and --mask-name are names on a server; give its --server")
    if engine == "vllm" or (engine == "auto" and device == "auto" and has_vllm()):
        return by_vllm(model, mask, batch_size=batch_size)
    return by_transformers(model, mask, batch_size=batch_size, device=device)


def by_transformers(
    model: str, mask: Path | None, *, batch_size: int, device: str
) -> dict[str, Answer]:
    """`base`, and with a mask `mask`, each a model of its own, loaded with its first prompts.

    Raises bmt_core.BaseMismatch for another base's mask.
    """
    folder, place = models.checkpoint_folder(model), models.pick_device(device)
    loaded = _load(mask, folder)
    tokenizer = models.load_tokenizer(folder)
    display = Display()

    @cache
    def network(masked: bool) -> PreTrainedModel:
        made = models.load_model(folder, place)
        if masked and loaded is not None:
            apply(loaded, made, base_fingerprint=loaded.base.fingerprint)
        return made

    def answer(name: str, prompts: Sequence[Sequence[Message]], tokens: int) -> list[str]:
        asked = network(name == "mask")
        with display.stage(f"answers of {name}", len(prompts)) as advance:
            return generate(
                asked,
                tokenizer,
                prompts,
                max_new_tokens=tokens,
                batch_size=batch_size,
                advance=advance,
            )

    names = ("base",) if mask is None else ("base", "mask")
    return {name: partial(answer, name) for name in names}


def _load(mask: Path | None, folder: Path) -> bmt_core.Mask | None:
    if mask is None:
        return None
    return bmt_core.load(mask, expect_base=bmt_core.fingerprint(folder))


def has_vllm() -> bool:
    """Whether vLLM is installed."""
    return importlib.util.find_spec("vllm") is not None


def by_vllm(model: str, mask: Path | None, *, batch_size: int) -> dict[str, Answer]:
    """`base`, and with a mask `mask`, on one engine of at most `batch_size` sequences at once.

    The engine starts with the first prompts. Raises ConfigError without vLLM, and
    bmt_core.BaseMismatch for another base's mask; an answer raises RolloutError where vLLM fails.
    """
    if not has_vllm():
        raise ConfigError(
            "engine: vllm is not installed; pip install 'bmt-adapters[cpu]' or [gpu], or take "
            "--engine transformers"
        )
    engine = _Vllm(models.checkpoint_folder(model), batch_size)
    found: dict[str, Answer] = {"base": engine.answers}
    if (loaded := _load(mask, engine.folder)) is not None:
        found["mask"] = partial(engine.answers, mask=loaded)
    return found


class _Vllm:
    """Our offline engine: reads the tokens that training reads, and decodes its own alike."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self.folder, self._batch_size = folder, batch_size
        self._tokenizer = models.load_tokenizer(folder)

    @cached_property
    def _engine(self) -> Any:
        # Standard output is for results, where vLLM would write its log.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        Display().say("starting vLLM; --engine transformers does without it")
        from bmt_server.offline import masked_llm

        # -1: the model's own context, or what fits in memory.
        return masked_llm(str(self.folder), max_model_len=-1, max_num_seqs=self._batch_size)

    def answers(
        self, prompts: Sequence[Sequence[Message]], tokens: int, mask: bmt_core.Mask | None = None
    ) -> list[str]:
        ids = [{"prompt_token_ids": render(self._tokenizer, prompt)} for prompt in prompts]
        try:
            engine = self._engine
            from bmt_server.offline import mask_request
            from vllm import SamplingParams

            outputs = engine.generate(
                ids,
                SamplingParams(temperature=0.0, max_tokens=tokens),
                lora_request=None if mask is None else mask_request(mask),
                use_tqdm=sys.stderr.isatty(),
            )
        except Exception as error:  # from its processes, whatever it is
            raise RolloutError(
                f"vLLM did not answer ({type(error).__name__}: {error}); --engine transformers "
                "does without it"
            ) from error
        return [
            str(self._tokenizer.decode(one.outputs[0].token_ids, skip_special_tokens=True))
            for one in outputs
        ]


def by_server(url: str, names: Mapping[str, str], *, at_once: int) -> dict[str, Answer]:
    """Models of a running server by our name; greedy, `at_once` requests together.

    vLLM batches them. Raises RolloutError when a request fails.
    """

    def answer(name: str) -> Answer:
        def answers(prompts: Sequence[Sequence[Message]], tokens: int) -> list[str]:
            from bmt_client import BmtClient

            with BmtClient(url) as client:
                api = client.openai()

                def one(prompt: Sequence[Message]) -> str:
                    done = api.chat.completions.create(
                        model=name,
                        messages=[dict(m) for m in prompt],  # type: ignore[misc]
                        temperature=0.0,
                        max_tokens=tokens,
                        extra_body=NEUTRAL_SAMPLING,
                    )
                    return done.choices[0].message.content or ""

                texts = []
                try:
                    with (
                        Display().stage(f"answers of {name}", len(prompts)) as advance,
                        ThreadPoolExecutor(at_once) as pool,
                    ):
                        for text in pool.map(one, prompts):
                            texts.append(text)
                            advance(1)
                        return texts
                except Exception as error:  # whatever the transport and the server say
                    raise RolloutError(f"{url} did not answer for {name} ({error})") from error

        return answers

    return {ours: answer(theirs) for ours, theirs in names.items()}
