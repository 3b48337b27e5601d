"""End of a run: the mask to write, its scores, its divergence from the base, its metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import bmt_core
from bmt_core import Mask
from bmt_core.config import BASE_CONFIG, arithmetic

from bmt_trainer.data.encoding import end_of_turn_text
from bmt_trainer.errors import EmptyMask, NonFinite
from bmt_trainer.evaluation.kl import forward_kl
from bmt_trainer.evaluation.score import best_guess
from bmt_trainer.masking.attach import Attached
from bmt_trainer.masking.export import library_versions
from bmt_trainer.methods.guards import pushing
from bmt_trainer.methods.guards.changes import CHANGES, SCORES
from bmt_trainer.methods.guards.contents import digest_of_examples
from bmt_trainer.methods.guards.finite import check_gates
from bmt_trainer.methods.pipeline import Loaded, current_mask, write_mask
from bmt_trainer.methods.rollouts.local import sample_texts
from bmt_trainer.methods.run_folder import settings_of
from bmt_trainer.templates.chat_templates import template_digest

# Settings that a mask's metadata does not repeat: names of files and devices.
_OF_THIS_MACHINE = ("model", "device", "from_mask")
# Held-out prompts on whose answers by the base a mask's KL divergence is measured.
_KL_PROMPTS = 64


def finish(loaded: Loaded, attached: Attached, metadata: Mapping[str, Any]) -> Mask:
    """Score the trained mask, write it to the output, remove the run's folder, and push the mask.

    Raises EmptyMask for one that deletes nothing, OutputError for a push that fails.
    """
    check_gates(attached, loaded.config.steps)
    full = current_mask(loaded, attached)
    _check_held(loaded, full)
    lean: Mapping[str, Any] = {}
    if loaded.config.lean == "off":
        _score_mask(loaded, attached, "mask", full)
        mask = full
    else:
        mask, lean = _choose_lean(loaded, attached, full)
    if not mask.zeros:
        raise EmptyMask(
            "the trained mask deletes no weight, so it is the base; nothing is written. "
            + (
                "Training learned no deletion: pass --lean off for those that it started from"
                if full.zeros
                # Of a run from a mask, Eq. 9's eta has no part.
                else f"Raise {'eta, ' if loaded.first is None else ''}learning_rate or steps"
            )
        )
    mask = dataclasses.replace(mask, metadata=_metadata(loaded, {**metadata, **lean}))
    loaded.run.note_writing()
    write_mask(mask, loaded.config.output)
    loaded.run.finish()
    pushing.push(loaded.config.output, loaded.config.push, loaded.display.say)
    return mask


def _check_held(loaded: Loaded, mask: Mask) -> None:
    """Raise NonFinite if a zero that is held is missing."""
    if loaded.first is None or not loaded.config.hold_zeros:
        return
    if missing := bmt_core.difference(loaded.first, mask).zeros:
        raise NonFinite(
            f"{missing:,} zeros of {loaded.config.from_mask} are missing although they are held: "
            "gates are not finite, or learning_rate is beyond all bounds; lower it"
        )


def _choose_lean(loaded: Loaded, attached: Attached, full: Mask) -> tuple[Mask, dict[str, Any]]:
    """The lean mask, which has only the learned deletions, or the full one; and its metadata.

    With `lean: auto` both are scored, and the lean mask is taken unless its mean reward, of pairs
    its margin, is below the 95 % interval of the full one's.
    """
    run, heldout = loaded.run, loaded.split.heldout
    lean = bmt_core.difference(full, bmt_core.load(loaded.start_file))
    _score_mask(loaded, attached, "lean", lean)
    chosen, metadata = lean, dict[str, Any]()
    if loaded.config.lean == "auto" and heldout:
        _score_mask(loaded, attached, "full", full)
        scores, measure = run.notes, loaded.score.measure
        least = scores["full"][f"{measure}_interval95"][0]
        if not lean.zeros or scores["lean"][measure] < least:
            chosen = full
        metadata["forward_kl"] = _forward_kl(loaded, attached, {"full": full, "lean": lean})
    if heldout:
        run.note("mask", run.notes["lean" if chosen is lean else "full"])
    metadata |= {"lean": chosen is lean, "zeros_full": full.zeros, "zeros_lean": lean.zeros}
    return chosen, metadata


def _score_mask(loaded: Loaded, attached: Attached, name: str, mask: Mask) -> None:
    attached.load_mask(mask)
    with attached.state.use("hard"):
        loaded.score(name)


def _forward_kl(
    loaded: Loaded, attached: Attached, masks: Mapping[str, Mask]
) -> dict[str, dict[str, float]]:
    """Forward KL divergence of each mask from the base, on the base's held-out answers."""
    with attached.state.use("off"):
        texts = base_texts(loaded)
    results = {}
    for name, mask in masks.items():
        attached.load_mask(mask)
        kl = forward_kl(loaded.model, attached, texts, loaded.tokenizer.pad_token_id)
        loaded.display.say(f"{name:<5}forward KL {kl.per_token:.4f} nats a token")
        results[name] = kl.to_json()
    return results


def evaluation_of(loaded: Loaded) -> dict[str, Any]:
    """Engine, batch size and arithmetic of a run's scores, which move an answer in a hundred.

    heldout: digest of the held-out examples.
    """
    return {
        "engine": "transformers",
        "batch_size": loaded.config.eval_batch_size,
        "device": loaded.device.type,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "heldout": digest_of_examples(loaded.split.heldout),
    }


def base_texts(loaded: Loaded) -> list[tuple[list[int], list[int]]]:
    """Held-out prompts and completions of them by the model, which must be the base now."""
    return sample_texts(
        loaded.model,
        loaded.tokenizer,
        loaded.split.heldout[:_KL_PROMPTS],
        max_new_tokens=loaded.config.max_new_tokens,
        seed=loaded.config.seed,
    )


def _first(mask: Mask, held: bool) -> dict[str, Any]:
    """The mask that training began from, in the metadata of the one that it made."""
    return {"digest": mask.digest, "zeros": mask.zeros, "held": held}


def _metadata(loaded: Loaded, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A mask's metadata: what all methods record of a run, and `metadata`."""
    config, notes = loaded.config, loaded.run.notes
    scores: dict[str, Any] = {n: notes[n] for n in SCORES if n in notes}
    # Of prompts alone no answer is known that could be a guess.
    answers = any(example.answer for example in loaded.split.train)
    if scores and answers and loaded.score.guessable:
        guess = best_guess(loaded.split.train, loaded.split.heldout, loaded.grader)
        scores["guess"] = guess.to_json()
    libraries = ["torch", "transformers", "trl"]
    if config.dataset.startswith("reasoning-gym:"):
        libraries.append("reasoning-gym")
    settings = settings_of(config)
    if "epochs" in loaded.settings:
        settings.pop("steps")
        settings["epochs"] = loaded.settings["epochs"]
    return {
        "dataset": config.dataset,
        "seed": config.seed,
        "steps": config.steps,
        "config": {k: v for k, v in settings.items() if k not in _OF_THIS_MACHINE},
        **({} if loaded.first is None else {"from": _first(loaded.first, config.hold_zeros)}),
        **({CHANGES: notes[CHANGES]} if CHANGES in notes else {}),
        BASE_CONFIG: arithmetic(loaded.folder),
        "chat_template": template_digest(loaded.tokenizer),
        "chat_template_kwargs": dict(config.chat_template_kwargs or {}),
        "end_of_turn": end_of_turn_text(loaded.tokenizer),
        "init_sparsity": notes["init_sparsity"],
        "scores": scores,
        "versions": library_versions(*libraries),
        "evaluation": evaluation_of(loaded),
        **metadata,
    }
