"""The estimate of a run's memory: its arithmetic, and measured peaks of small runs."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.targets import EXPERT_GATES, held_by, select
from bmt_trainer.methods import grpo, sdft, sft
from bmt_trainer.methods.config import DpoConfig, GrpoConfig, KtoConfig, SdftConfig, SftConfig
from bmt_trainer.methods.memory import of_run
from bmt_trainer.methods.memory.estimate import GIB, estimate, live_share
from bmt_trainer.methods.memory.shapes import Shapes, shapes_of
from bmt_trainer.methods.preferences import dpo, kto
from bmt_trainer.models import outline
from transformers import AutoModelForCausalLM

from tests.support.tiny_model import byte_tokenizer, save_tiny_llama, tiny_llama
from tests.support.training.architectures import EXPERTS, small_config
from tests.support.training.display import Lines
from tests.support.training.live_memory import LiveMemory

# Bounds on estimate / measured: every row is taken to be as long as the longest, and all of its
# tokens to have logits.
LEAST, MOST = 0.95, 1.6
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "eos_token_id": 300,
}
DEEP = {"hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 24}


def rows(path, *, pairs, answer):
    made = []
    for at in range(20):
        columns = {"prompt": f"{at:03d}?", "completion": "y" * answer}
        if pairs:
            columns = {**columns, "chosen": "y" * answer, "rejected": "z" * answer}
            del columns["completion"]
        made.append(json.dumps(columns))
    path.write_text("\n".join(made))
    return str(path)


@pytest.mark.parametrize(
    ("train", "kind", "shape", "changes", "answer"),
    [
        # Activations of many layers, with and without checkpointing; gates; logits of each method.
        (sft.train, SftConfig, DEEP, {"precision": "bf16"}, 100),
        (
            *(sft.train, SftConfig, {**DEEP, "dtype": "bfloat16"}),
            *({"precision": "bf16", "gradient_checkpointing": True}, 100),
        ),
        (
            *(sft.train, SftConfig, {"hidden_size": 512, "intermediate_size": 4096}),
            *({"precision": "fp32", "batch_size": 1}, 16),
        ),
        (dpo.train, DpoConfig, {"vocab_size": 4096}, {"batch_size": 2}, 120),
        (kto.train, KtoConfig, {"vocab_size": 4096}, {"batch_size": 4}, 120),
        (grpo.train, GrpoConfig, {}, {"max_new_tokens": 40}, 20),
        (sdft.train, SdftConfig, {"vocab_size": 4096}, {"max_new_tokens": 40}, 20),
    ],
    ids=["layers", "checkpointing", "gates", "dpo", "kto", "grpo", "sdft"],
)
def test_the_estimate_of_a_run_is_that_of_its_measured_peak(
    train, kind, shape, changes, answer, tmp_path
):
    shape = {**SHAPE, **shape, "max_position_embeddings": 512}
    dtype = getattr(torch, shape.pop("dtype", "float32"))
    folder = save_tiny_llama(tmp_path / "model", dtype, **shape)
    paired = kind in (DpoConfig, KtoConfig)
    of_method = {"prompts_per_step": 4, "micro_batch": 4, "validation": 0}
    config = kind(
        **{
            "model": str(folder),
            "dataset": rows(tmp_path / "rows.jsonl", pairs=paired, answer=answer),
            "output": tmp_path / "m.bmt",
            "heldout": 2,
            "steps": 2,
            "calibration_prompts": 4,
            "max_new_tokens": 4,
            "eval_batch_size": 2,
            "checkpoint_every": 0,
            "device": "cpu",
            **(of_method if kind in (GrpoConfig, SdftConfig) else {}),
            **changes,
        }
    )
    shown = Lines()
    with LiveMemory() as live:
        train(config, shown)
    found = re.search(r"^memory: about ([\d,.]+) (GiB|MiB) at most: base", shown.text, re.MULTILINE)
    stated = float(found[1].replace(",", "")) * (GIB if found[2] == "GiB" else 2**20)
    assert LEAST < stated / live.peak < MOST


@pytest.mark.found
def test_copies_of_experts_in_one_tensor_are_in_the_estimate(tmp_path):
    """Soft ones are kept for the backward pass, and hard ones have the rows without gates too."""
    shape = {"hidden_size": 128, "intermediate_size": 512, "max_position_embeddings": 512}
    shape |= {"vocab_size": 300, "num_hidden_layers": 6, "num_local_experts": 8}
    model = AutoModelForCausalLM.from_config(small_config("mixtral", **shape))
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    del model
    config = GrpoConfig(
        model=str(tmp_path / "model"),
        dataset="task:initials",
        output=tmp_path / "m.bmt",
        targets=EXPERT_GATES,
        heldout=0,
        validation=0,
        steps=2,
        prompts_per_step=2,
        micro_batch=2,
        max_new_tokens=4,
        calibration_prompts=4,
        eval_batch_size=2,
        checkpoint_every=0,
        device="cpu",
        precision="fp32",
    )
    shown = Lines()
    with LiveMemory() as live:
        grpo.train(config, shown)
    stated = re.search(r"^memory: about ([\d.]+) MiB at most: base", shown.text, re.MULTILINE)
    assert 1 < float(stated[1]) * 2**20 / live.peak < MOST


def llama_8b(**changes):
    return Shapes(
        **{
            **{"weights": 8_030_261_248, "width": 2, "computed": 2},
            **{"gates": 32 * 14336 * 4096, "largest": 14336 * 4096},
            **{"layers": 32, "hidden": 4096, "inner": 14336, "query": 4096, "keys": 1024},
            "vocabulary": 128256,
            **changes,
        }
    )


def settings(kind, **changes):
    return kind(model="m", dataset="task:initials", output="m.bmt", **changes)


def test_the_arithmetic_of_the_papers_8b_by_hand():
    made = estimate(settings(GrpoConfig, gradient_checkpointing=True), llama_8b())
    assert made.kept["base"].bytes == 8_030_261_248 * 2
    # A sixth of the gates are live, with their positions.
    assert 0.15 < live_share(settings(GrpoConfig)) < 0.17
    # 64 prompts of 4 completions, 512 + 4,096 tokens, 32 layers and one more at a time.
    cache = 256 * 4608 * 33 * 2 * 1024 * 2
    hard, scores = 32 * 14336 * 4096 * 2, 256 * 128256 * (2 + 16)
    assert made.phases["rollouts"].bytes == cache + hard + scores
    assert made.peak == sum(p.bytes for p in made.kept.values()) + cache + hard + scores
    assert "256 x 4,608 tokens x 33 x 2,048 keys and values x 2 bytes" in made.line()
    dense = estimate(settings(SftConfig), llama_8b())
    assert dense.kept["gates"].bytes == 32 * 14336 * 4096 * 16
    teacher = estimate(settings(SdftConfig), llama_8b())
    assert teacher.kept["gates"].bytes == 32 * 14336 * 4096 * 20
    full = estimate(settings(SftConfig), llama_8b(), trained="weights")
    assert sum(p.bytes for p in full.kept.values()) == 8_030_261_248 * 16


@pytest.mark.parametrize(
    ("changes", "smaller"),
    [
        ({"gradient_checkpointing": True, "batch_size": 16}, {"batch_size": 16}),
        ({"batch_size": 8}, {"batch_size": 16}),
        ({"eval_batch_size": 64, "max_length": 512}, {"eval_batch_size": 64, "max_length": 1024}),
    ],
)
def test_settings_that_lower_the_peak(changes, smaller):
    less, more = (estimate(settings(SftConfig, **c), llama_8b()).peak for c in (changes, smaller))
    assert less < more


@pytest.mark.found
def test_answers_that_are_scored_take_bounded_memory():
    """With a large vocabulary and long answers, too."""
    for changes in ({"max_length": 8192}, {"max_length": 32768}):
        made = estimate(settings(KtoConfig, **changes), llama_8b()).phases["evaluation"]
        assert made.bytes == 2**27 // 128256 * 128256 * (2 + 8)
    watched = estimate(settings(SftConfig, validation=10), llama_8b()).phases["validation"]
    assert watched.bytes == made.bytes
    assert "validation" not in estimate(settings(SftConfig), llama_8b()).phases


def test_a_server_has_the_rollouts():
    made = estimate(settings(GrpoConfig, server="http://localhost:8000"), llama_8b())
    assert "rollouts" not in made.phases


def test_shapes_of_experts_and_of_the_text_of_several_inputs(tmp_path):
    config = small_config("mixtral", **EXPERTS)
    config.save_pretrained(tmp_path)
    shapes = shapes_of(outline(tmp_path), [10, 30], "fp32", "cpu")
    assert (shapes.inner, shapes.gates, shapes.largest) == (2 * 16, 40, 30)
    assert (shapes.layers, shapes.hidden, shapes.vocabulary) == (4, 32, 64)
    assert shapes.width == shapes.computed == 4


def test_a_run_that_is_larger_than_its_device_is_warned_of(tmp_path, monkeypatch):
    folder = save_tiny_llama(tmp_path)

    def lines(config=None):
        run = {
            "config": config or settings(SftConfig),
            "folder": folder,
            "gates": [2048] * 2,
            "lengths": [9, 30],
        }
        return list(of_run.lines_of_run(SimpleNamespace(**run, device=torch.device("cpu"))))

    (line,) = lines()
    assert "4 x 30 tokens" in line or "64 x 30 tokens" in line
    monkeypatch.setattr(of_run, "memory_of", lambda device: 2**20)
    _, warning = lines()
    assert warning.startswith("warning: memory: cpu has 1 MiB, and the run may take ")
    assert "lower eval_batch_size, max_new_tokens, batch_size or max_length" in warning
    # What would not help is not named: rollouts by transformers are in pieces.
    for rollouts, sizes in (("transformers", "micro_batch"), ("vllm", "micro_batch, vllm_memory")):
        _, warning = lines(settings(GrpoConfig, rollouts=rollouts))
        assert f"lower eval_batch_size, max_new_tokens, {sizes} or max_length" in warning


@pytest.mark.found
def test_gates_that_are_attached_are_no_weights_of_the_base():
    model = tiny_llama()
    before = shapes_of(model, [64], "auto", "cpu")
    attach(model).start_teacher()
    assert shapes_of(model, [64], "auto", "cpu") == before


@pytest.mark.found
@pytest.mark.parametrize(("kind", "targets"), [("phi3", None), ("mixtral", EXPERT_GATES)])
def test_weights_that_hold_gates_are_those_of_their_tensors(kind, targets):
    model = AutoModelForCausalLM.from_config(small_config(kind, **EXPERTS))
    chosen = select(model, targets)
    held, stacked = held_by(chosen.values())
    assert held == 2 * sum(target.numel for target in chosen.values())
    assert stacked == (held if kind == "mixtral" else 0)
    assert attach(model, targets).held == held
