"""Generation time on a CPU: the LM head's input copied to contiguous memory against a view."""

from __future__ import annotations

from functools import partial

from bmt_trainer.data import sources
from bmt_trainer.evaluation.generate import generate
from bmt_trainer.models import contiguous, load_model, load_tokenizer

from benchmarks.harness.environment import demo_model
from reproduce.experiments.costs.turns import first_over_second
from reproduce.experiments.record import keep, ratio

COMMAND = "make reproduce NAME=costs-head"
# A batch of the evaluation of small-forgetting-sft.
PROMPTS, NEW = 32, 16


def compare() -> None:
    """Time both in turns; keep the ratio and print how many answers are equal."""
    model = load_model(demo_model()).requires_grad_(False)  # as with a mask or LoRA
    tokenizer = load_tokenizer(demo_model())
    examples = sources.load("task:sort-numbers", heldout=PROMPTS, train=0, seed=0).heldout
    texts: dict[str, list[str]] = {}

    def answer(way: str) -> None:
        head = model.get_output_embeddings()
        head._forward_pre_hooks.clear()
        if way == "rows":
            head.register_forward_pre_hook(contiguous)
        texts[way] = generate(model, tokenizer, examples, max_new_tokens=NEW, batch_size=PROMPTS)

    time_ratio = first_over_second({way: partial(answer, way) for way in ("rows", "view")})
    same = sum(a == b for a, b in zip(texts["rows"], texts["view"], strict=True))
    print(f"{same} of {PROMPTS} answers are equal")
    keep([ratio("answers_time_rows_over_view", time_ratio, COMMAND)])
    print(f"answers_time_rows_over_view {time_ratio}")
