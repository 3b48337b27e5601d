"""Who answers an evaluation's prompts: the model in this process, or a running server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import bmt_core

from bmt_trainer import models
from bmt_trainer.apply import apply
from bmt_trainer.data import Message
from bmt_trainer.errors import RolloutError
from bmt_trainer.evaluate import generate
from bmt_trainer.progress import Display

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
                    )
                    return done.choices[0].message.content or ""

                try:
                    with ThreadPoolExecutor(at_once) as pool:
                        return list(pool.map(one, prompts))
                except Exception as error:  # whatever the transport and the server say
                    raise RolloutError(f"{url} did not answer for {name} ({error})") from error

        return answers

    return {ours: answer(theirs) for ours, theirs in names.items()}
