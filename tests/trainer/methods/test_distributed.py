"""Two processes under FSDP2 on the CPU (gloo) against one."""

from __future__ import annotations

import json
from pathlib import Path

import bmt_core
import pytest
import torch
import yaml
from bmt_trainer.distributed import join
from bmt_trainer.errors import ConfigError
from bmt_trainer.methods.config import TrainConfig
from bmt_trainer.models import load_model
from trl.trainer.utils import add_fused_lm_head

from tests.support.tiny_model import save_tiny_llama
from tests.support.training import forked
from tests.support.training.ranks import environments

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Path:
    """The tiny model in fp32: rounding must not hide what differs."""
    folder = tmp_path_factory.mktemp("fp32")
    save_tiny_llama(folder)
    return folder


def run(method: str, processes: int, settings: dict, folder: Path):
    """(mask, what `two_ranks` saw)."""
    [found] = run_all(method, processes, [settings], folder)
    return found


def run_all(method: str, processes: int, runs: list[dict], folder: Path) -> list[tuple]:
    """The same of several runs, one after the other in the same processes."""
    names = [f"{method}-{processes}{f'-{at}' if at else ''}.bmt" for at in range(len(runs))]
    outputs = [str(folder / name) for name in names]
    settings = [
        json.dumps({"method": method, **s, "output": o}) for s, o in zip(runs, outputs, strict=True)
    ]
    launch(processes, str(SCRIPT), *settings)
    return [(bmt_core.load(output), torch.load(f"{output}.pt")) for output in outputs]


def launch(processes: int, *arguments: str) -> str:
    """Run Python with `arguments` in so many processes; what they print."""
    done = forked.run(arguments, processes=environments(processes), timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def flipped(mask: bmt_core.Mask, start: dict[str, torch.Tensor]) -> set[tuple[str, int]]:
    """Positions that training deleted or restored."""
    flips = set()
    for tensor in mask.tensors:
        before = set(start[tensor.name.removesuffix(".weight")].tolist())
        flips |= {(tensor.name, p) for p in before ^ set(tensor.positions.tolist())}
    return flips


def base(checkpoint: Path) -> dict:
    return {
        "model": str(checkpoint),
        "dataset": "task:initials",
        "heldout": 4,
        "steps": 4,
        "learning_rate": 0.01,
        "calibration_prompts": 8,
        "max_new_tokens": 4,
        "checkpoint_every": 0,
        "device": "cpu",
        "precision": "fp32",
    }


@pytest.fixture(scope="module")
def pairs(exact, tmp_path_factory):
    """By the number of rows: (folder, what two processes made, what one made that accumulates).

    The latter two as of `run`; 0 rows stands for a task, and scores. Of 3 rows, and of the one at
    the end of 17, the second process gets none.
    """
    folder = tmp_path_factory.mktemp("pairs")
    runs = {0: {**base(exact), "batch_size": 2}}
    for rows in (16, 21, 24, 17, 3):
        data = folder / f"{rows}.jsonl"
        data.write_text(
            "".join(
                json.dumps({"prompt": "x" * (i % 5) + f"{i}", "completion": f"{i * 7919 % 97}"})
                + "\n"
                for i in range(rows)
            )
        )
        changes = {"dataset": str(data), "heldout": 0, "learning_rate": 0.02, "steps": 4}
        runs[rows] = {**base(exact), **changes, "batch_size": 4, "eta": 0.3}
    two = run_all("sft", 2, list(runs.values()), folder)
    one = run_all("sft", 1, [{**r, "gradient_accumulation": 2} for r in runs.values()], folder)
    return folder, dict(zip(runs, zip(two, one, strict=True), strict=True))


def test_sft_under_fsdp2_is_that_of_one_process(pairs):
    """The same examples a step: two processes of one batch, or one of two."""
    (two, sharded), (one, alone) = pairs[1][0]
    for name, gradient in alone["gradients"].items():
        error = (sharded["gradients"][name] - gradient).norm() / gradient.norm()
        assert error < 1e-6, (name, float(error))
    flips = flipped(one, alone["deleted"]), flipped(two, sharded["deleted"])
    both = len(flips[0] & flips[1]) / len(flips[0] | flips[1])
    print(f"\n{len(flips[0])} flips in one process, {len(flips[1])} in two, Jaccard {both:.4f}")
    assert len(flips[0]) > 50, "a run without flips would prove nothing"
    assert both >= 0.99
    scores = [m.metadata["scores"]["base"] for m in (one, two)]
    assert scores[0] == scores[1]


@pytest.mark.found
@pytest.mark.parametrize("rows", [16, 21, 24, 17, 3])
def test_two_processes_train_on_uneven_rows_as_one_does(pairs, rows):
    folder, made = pairs
    (two, _), (one, seen) = made[rows]
    assert len(flipped(one, seen["deleted"])) > 100, "a run without flips would prove nothing"
    for of_two, of_one in zip(two.tensors, one.tensors, strict=True):
        assert of_two.positions.tolist() == of_one.positions.tolist()
    name = f"-{list(made).index(rows)}.bmt.history.json"
    losses = [
        [step["loss"] for step in json.loads((folder / f"sft-{n}{name}").read_text())["steps"]]
        for n in (1, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# Rows of preferences. Of two processes the last batch of an epoch has unequal shares; of 17 rows,
# and of 3, the second process has none of it.
COUNTS = (16, 21, 17, 3)


@pytest.fixture(scope="module")
def by_preferences(exact, tmp_path_factory):
    """(folder, by method and rows: what two processes made, what one made of their batches)."""
    folder = tmp_path_factory.mktemp("preferences")
    runs = {}
    for rows in COUNTS:
        # Scores, and a validation, are of all rows in each process.
        aside = {"heldout": 4, "validation": 3} if rows == 16 else {"heldout": 0, "validation": 0}
        data = folder / f"{rows}.jsonl"
        made = (
            {"prompt": "x" * (i % 5) + f"{i}", "chosen": f"{i * 7919 % 97}", "rejected": "?"}
            for i in range(rows + sum(aside.values()))
        )
        data.write_text("".join(json.dumps(row) + "\n" for row in made))
        of_run = {**base(exact), **aside, "dataset": str(data), "eta": 0.3, "validate_every": 2}
        for method in ("dpo", "kto"):
            runs[method, rows] = {**of_run, "method": method, "learning_rate": 0.02}
    two = run_all("both", 2, [{**r, "batch_size": 4} for r in runs.values()], folder)
    one = run_all("both", 1, [{**r, "batch_size": 8} for r in runs.values()], folder)
    return folder, dict(zip(runs, zip(two, one, strict=True), strict=True))


@pytest.mark.parametrize("rows", COUNTS)
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_two_processes_train_by_preferences_as_one_does(by_preferences, method, rows):
    folder, made = by_preferences
    (two, _), (one, seen) = made[method, rows]
    assert len(flipped(one, seen["deleted"])) > 100, "a run without flips would prove nothing"
    for of_two, of_one in zip(two.tensors, one.tensors, strict=True):
        assert of_two.positions.tolist() == of_one.positions.tolist()
    at = list(made).index((method, rows))
    name = f"{f'-{at}' if at else ''}.bmt.history.json"
    sharded, alone = (json.loads((folder / f"both-{n}{name}").read_text()) for n in (2, 1))
    assert len({step["loss"] for step in alone["steps"]}) > 1
    # Loss, rewards, divergence, tokens: every figure of a step.
    for of_two, of_one in zip(sharded["steps"], alone["steps"], strict=True):
        assert of_two == pytest.approx(of_one, rel=1e-4, abs=1e-5)
    assert ("mask" in alone["scores"]) == ("validation" in alone) == (rows == 16)
    assert sharded["scores"] == alone["scores"]
    assert sharded.get("validation") == alone.get("validation")


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_reference_of_a_sharded_model_is_the_base_bit_for_bit(by_preferences, exact, method):
    plain = load_model(exact).train()
    add_fused_lm_head(plain)
    for (of_run, _), ((_, sharded), _) in by_preferences[1].items():
        if of_run == method:
            taken, found = sharded["reference"]
            with torch.no_grad():
                assert torch.equal(found, plain(**taken).log_probs)


def test_a_comparison_under_fsdp2_is_told_and_kept_once(exact, tmp_path):
    settings = {k: v for k, v in base(exact).items() if k not in ("model", "dataset")}
    recipe = tmp_path / "plan.yaml"
    plan = {**settings, "trainer": "sft", "batch_size": 1}
    plan |= {"models": [str(exact)], "datasets": ["task:initials"]}
    plan |= {"methods": ["base", "mth-99", "bmt"]}
    recipe.write_text(yaml.safe_dump(plan))
    arguments = ["-m", "bmt_trainer", "compare", "--config", recipe, "--output", tmp_path / "out"]
    for _ in range(2):  # the second time from the files
        [line] = launch(2, *map(str, arguments), "--json").splitlines()
        results = {result["method"]: result for result in json.loads(line)}
        assert list(results) == ["base", "mth-99", "bmt"]
        [file] = (tmp_path / "out").glob("*.bmt")
        assert bmt_core.load(file).digest == results["bmt"]["digest"]
    assert len(list((tmp_path / "out").glob("*.json"))) == 3
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_grpo_under_fsdp2_trains_gates_and_writes_one_mask(exact, tmp_path):
    reward = tmp_path / "reward.py"
    reward.write_text("def odd(text, answer):\n    return sum(map(ord, text)) % 7 / 7\n")
    settings = {
        **base(exact),
        "validation": 4,
        "validate_every": 2,
        "prompts_per_step": 4,
        "completions": 4,
        "micro_batch": 4,
        "reward": f"{reward}:odd",
        "lean": "auto",
    }
    mask, seen = run("grpo", 2, settings, tmp_path)
    assert all(g.abs().sum() > 0 for g in seen["gradients"].values())
    assert mask.metadata["zeros_full"] > 0
    history = json.loads((tmp_path / "grpo-2.bmt.history.json").read_text())
    assert len(history["steps"]) == 4
    assert not (tmp_path / "grpo-2.bmt.run").exists()


def test_the_first_process_chooses_the_best_mask(exact, tmp_path):
    """A reward that rises in one process and falls in the other, as a judge's may."""
    (tmp_path / "r.py").write_text(
        "import os\ncalls = []\n"
        "def drift(completions, **_):\n"
        "    calls.append(1)\n"
        "    return [len(calls) * (1 - 2 * int(os.environ['RANK']))] * len(completions)\n"
    )
    settings = {
        **base(exact),
        "validation": 2,
        "validate_every": 1,
        "reward": f"{tmp_path}/r.py:drift",
    }
    settings |= {
        "prompts_per_step": 4,
        "completions": 4,
        "micro_batch": 4,
        "steps": 3,
        "heldout": 0,
    }
    mask, _ = run("grpo", 2, settings, tmp_path)
    assert mask.metadata["step"] == 3


@pytest.mark.parametrize(
    ("environment", "changes", "message"),
    [
        ({}, {}, "without FSDP2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, {}, "without FSDP2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {"device": "mps"}, "one process"),
    ],
)
def test_what_several_processes_cannot_do(monkeypatch, tmp_path, environment, changes, message):
    for name, value in {"WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    config = TrainConfig(model="m", dataset="task:initials", output=tmp_path / "m.bmt", **changes)
    with pytest.raises(ConfigError, match=message):
        join(config.device)
