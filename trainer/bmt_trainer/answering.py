"""Who answers an evaluation's prompts: vLLM or transformers here, or a running server.

All of them greedily, whatever sampling the checkpoint's own settings recommend.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bmt_core

from bmt_trainer import models
from bmt_trainer.apply import apply
from bmt_trainer.data import Message
from bmt_trainer.encode import render
from bmt_trainer.errors import ConfigError, RolloutError
from bmt_trainer.evaluate import generate
from bmt_trainer.progress import Display
from bmt_trainer.sampling import UNTOUCHED

if TYPE_CHECKING:
    from bmt_trainer.suites import Answer


def by_transformers(
    model: str, mask: Path | None, *, batch_size: int, device: str
) -> dict[str, Answer]:
    """`base`, and with a mask `mask`, each a model of its own in this process."""
    folder = models.checkpoint_folder(model)
    tokenizer = models.load_tokenizer(folder)
    display = Display()

    def answer(name: str, masked: bool) -> Answer:
        network = models.load_model(folder, models.pick_device(device))
        if masked and mask is not None:
            apply(bmt_core.load(mask), network, base_fingerprint=bmt_core.fingerprint(folder))

        def answers(prompts: Sequence[Sequence[Message]], tokens: int) -> list[str]:
            with display.stage(f"answers of {name}", len(prompts)) as advance:
                return generate(
                    network,
                    tokenizer,
                    prompts,
                    max_new_tokens=tokens,
                    batch_size=batch_size,
                    advance=advance,
                )

        return answers

    found = {"base": answer("base", masked=False)}
    return found if mask is None else {**found, "mask": answer("mask", masked=True)}


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
    if mask is not None:
        loaded = bmt_core.load(mask, expect_base=bmt_core.fingerprint(engine.folder))
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
                        extra_body=UNTOUCHED,
                    )
                    return done.choices[0].message.content or ""

                try:
                    with ThreadPoolExecutor(at_once) as pool:
                        return list(pool.map(one, prompts))
                except Exception as error:  # whatever the transport and the server say
                    raise RolloutError(f"{url} did not answer for {name} ({error})") from error

        return answers

    return {ours: answer(theirs) for ours, theirs in names.items()}
