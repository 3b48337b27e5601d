"""Comparisons on a tiny model: weights that each method changes, adapter sizes, resumption."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import nullcontext

import bmt_core
import bmt_trainer.comparison.runner
import bmt_trainer.console
import numpy as np
import pytest
import torch
import zstandard
from bmt_trainer.comparison import adapter_sizes, baselines, plan, provenance, tables
from bmt_trainer.comparison.runner import WANDA, run
from bmt_trainer.errors import ConfigError, DataError, RewardError
from bmt_trainer.masking.attach import attach
from bmt_trainer.models import load_model

from tests.support.tiny_model import TEMPLATE, tiny_llama
from tests.support.training.comparisons import made_up
from tests.support.training.display import quiet

SMALL = {
    "heldout": 6,
    "steps": 3,
    "batch_size": 4,
    "learning_rate": 0.01,
    "calibration_prompts": 8,
    "max_new_tokens": 4,
    "device": "cpu",
}
#: Settings of a comparison that measures all along the way.
TRACKED = {
    "track_every": 2,
    "retention": "task:arithmetic",
    "retention_examples": 4,
    "track_heldout": True,
}
TINY = "tinylora-13@1e-2"
LORA = ("lora-1", "lora-1-a16", "lora-4")
METHODS = ["base", "wanda", "full", *LORA, TINY, "mth-99", "mth-99.95", "bmt"]


def planned(checkpoint, output, **changes):
    values = {
        "trainer": "sft",
        "methods": METHODS,
        "model": str(checkpoint),
        "dataset": "task:initials",
        "output": output,
        **SMALL,
        **changes,
    }
    return plan.read(None, values)


@pytest.fixture(scope="module")
def compared(checkpoint, tmp_path_factory):
    """All methods once, tracked and measured: folder, results, models after training."""
    output = tmp_path_factory.mktemp("compared")
    kept = {}
    scored = bmt_trainer.comparison.runner.score_heldout

    def keeping(loaded, model, label):
        state = {n: p.detach().clone() for n, p in model.named_parameters()}
        kept.setdefault(label.partition(" ")[0], (model, state))
        return scored(loaded, model, label)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bmt_trainer.comparison.runner, "score_heldout", keeping)
        results = run(planned(checkpoint, output, geometry=True, **TRACKED), quiet())
    return output, {r["method"]: r for r in results}, kept


def test_every_method_has_a_result_of_the_same_examples(compared):
    _, results, _ = compared
    assert list(results) == METHODS
    assert {len(r["right"]) for r in results.values()} == {6}
    assert {r["score"]["total"] for r in results.values()} == {6}
    assert len({r["parameters"] for r in results.values()}) == 1
    assert all(len(r["logs"]["loss"]) == 3 for m, r in results.items() if m not in METHODS[:2])


def test_base_weights_are_bit_identical_after_every_method_but_full(compared, checkpoint):
    _, _, kept = compared
    fresh = dict(load_model(checkpoint).named_parameters())
    for method in ("base", "wanda", "bmt", *LORA, TINY):
        _, state = kept[method]
        found = {
            n.removeprefix("base_model.model.").replace(".base_layer", ""): w
            for n, w in state.items()
            if not n.endswith("gate_logits") and "lora_" not in n
        }
        assert found.keys() == fresh.keys(), method
        assert all(torch.equal(found[n], w) for n, w in fresh.items()), method
    _, state = kept["full"]
    assert all(not torch.equal(state[n], w.float()) for n, w in fresh.items() if w.ndim > 1)


def test_tinylora_moves_its_numbers_within_two_directions(compared):
    _, results, kept = compared
    result, (model, _) = results[TINY], kept[TINY]
    layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
    assert result["trained"] == 13 * len(layers)
    assert result["size_bytes"] == 4 * result["trained"]
    changes = [layer.get_delta_weight("default").float() for layer in layers]
    assert all(torch.linalg.matrix_rank(change) == 2 for change in changes)


def test_alpha_scales_what_lora_adds():
    made = {alpha: baselines.lora(tiny_llama(), 1, alpha, seed=3) for alpha in (None, 2, 16)}
    ids = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    grads = {}
    for alpha, tuned in made.items():
        tuned.model(input_ids=ids, labels=ids).loss.backward()
        grads[alpha] = [p.grad for p in tuned.model.parameters() if p.requires_grad]
    for two, same, more in zip(grads[2], grads[None], grads[16], strict=True):
        torch.testing.assert_close(two, same, rtol=0, atol=0)
        torch.testing.assert_close(8 * two, more, rtol=1e-4, atol=1e-7)
    assert any(g.abs().max() > 0 for g in grads[2])


@pytest.mark.parametrize("name", ["lora-0", "lora-1-a0", "lora-1-16", "tinylora", "tinylora-0"])
def test_other_names_of_adapters_are_refused(checkpoint, tmp_path, name):
    with pytest.raises(ConfigError, match=r"lora-RANK-aALPHA, tinylora-N"):
        planned(checkpoint, tmp_path, methods=["base", name])


def test_tinylora_has_no_rate_of_its_own(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"tinylora-13 needs a learning rate"):
        planned(checkpoint, tmp_path, methods=["tinylora-13"])


@pytest.mark.parametrize("update_sparsity", [99, 99.95])
def test_mth_keeps_the_other_weights(compared, checkpoint, update_sparsity):
    _, results, kept = compared
    result, (_, state) = results[f"mth-{update_sparsity}"], kept[f"mth-{update_sparsity}"]
    fresh = dict(load_model(checkpoint).named_parameters())
    moved = {n: int((state[n] != w.float()).sum()) for n, w in fresh.items()}
    share = 1 - update_sparsity / 100
    allowed = {n: max(1, round(w.numel() * share)) for n, w in fresh.items()}
    assert all(moved[n] <= allowed[n] for n in fresh)
    assert sum(moved.values()) > 0.5 * sum(allowed.values())
    assert result["trained"] == sum(allowed.values())


def test_mth_moves_only_its_own_weights():
    """The same weights in every step, and the same for the same seed."""
    model = tiny_llama()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    made = baselines.mth(model, 0.9, seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    moved = []
    for step in range(3):
        torch.manual_seed(step)
        ids = torch.randint(3, 200, (2, 9))
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        moved.append({n: p.detach() != before[n] for n, p in model.named_parameters()})
    assert sum(int(m.sum()) for m in moved[-1].values()) <= made.trained
    assert all(not (moved[0][n] & ~moved[2][n]).any() for n in before)
    again = baselines.mth(tiny_llama(), 0.9, seed=3)
    other = baselines.mth(tiny_llama(), 0.9, seed=4)
    assert again.size() == made.size()
    assert again.trained == other.trained == made.trained


def test_sizes_are_appendix_bs(compared, checkpoint):
    output, results, _ = compared
    model = load_model(checkpoint)
    total = sum(p.numel() for p in model.parameters())
    assert results["base"]["size_bytes"] == 0
    assert results["full"]["size_bytes"] == 4 * total
    linear = baselines.projections(model)
    assert len(linear) == 14
    for rank in (1, 4):
        expected = sum(4 * rank * sum(m.weight.shape) for m in linear.values())
        assert results[f"lora-{rank}"]["size_bytes"] == expected
        assert results[f"lora-{rank}"]["trained"] * 4 == expected
    bmt = results["bmt"]
    mask = bmt_core.load(next(output.glob("*.bmt")))
    frame = b""
    for tensor in mask.tensors:
        kept = np.ones(tensor.numel, bool)
        kept[tensor.positions] = False
        frame += np.packbits(kept).tobytes()
    whole = zstandard.ZstdCompressor(level=3).compress(frame)
    assert bmt["size_bytes"] == len(whole)
    assert bmt["disk_bytes"] == next(output.glob("*.bmt")).stat().st_size
    assert bmt["zeros"] == mask.zeros


def test_sizes_of_the_papers_models():
    """Table 1, in its MB, which are MiB: Llama-3.2-1B has 16 blocks of these shapes."""
    shapes = [(2048, 2048), (512, 2048), (512, 2048), (2048, 2048)]
    shapes += [(8192, 2048), (8192, 2048), (2048, 8192)]
    assert round(adapter_sizes.full(1_235_814_400) / adapter_sizes.MIB) == 4714
    for rank, size in ((1, 2.7), (4, 10.8)):
        assert round(adapter_sizes.lora(rank, shapes * 16) / adapter_sizes.MIB, 1) == pytest.approx(
            size, abs=0.05
        )
    draw = np.random.default_rng(0)
    # A hundredth of it, for speed: 4 bytes a value, and the entropy of its position.
    positions = draw.random(12_358_144) < 0.0005
    size = adapter_sizes.mth(int(positions.sum()), [positions]) * 100 / adapter_sizes.MIB
    assert size == pytest.approx(4.1, abs=0.1)


def test_wanda_is_swept_without_noise(compared):
    _, results, _ = compared
    wanda = results["wanda"]
    assert [level["eta"] for level in wanda["levels"]] == list(WANDA)
    numel = wanda["numel"]
    for level in wanda["levels"]:
        # At least one of each of two layers.
        assert abs(level["zeros"] - max(2, numel * level["eta"])) <= 2
    best = max(level["score"]["exact"] for level in wanda["levels"])
    assert wanda["score"]["exact"] == best


def test_tracked_rows(compared):
    _, results, _ = compared
    for method in METHODS[2:]:
        rows = results[method]["track"]
        assert [row["step"] for row in rows] == [0, 2, 3]
        assert all(row["n"] == 4 and 0 <= row["retention"] <= 1 for row in rows)
        # At small rates, three steps may move less than the rounding of the divergence.
        assert rows[-1]["kl_token"] > (0 if method == "bmt" else -1e-6), method
        assert rows[-1]["kl_sequence"] >= rows[-1]["kl_token"] - 1e-6
        assert (rows[0]["closed_gates"] > 0) == (method == "bmt")
        right = results[method]["right"]
        assert rows[-1]["heldout"] == right.count("1") / len(right)
        assert results[method]["best"]["heldout"] == max(row["heldout"] for row in rows)
    assert results["lora-1"]["track"][0]["kl_token"] == pytest.approx(0, abs=1e-6)


def test_geometry_of_gates_and_of_all(compared):
    _, results, _ = compared
    bmt = results["bmt"]["geometry"]
    assert (bmt["gate"]["modules"], bmt["gate"]["updated"]) == (2, 2)
    assert (bmt["all"]["modules"], bmt["all"]["updated"]) == (14, 2)
    assert bmt["all"]["effective_rank"] == bmt["gate"]["effective_rank"]
    for rank in (1, 4):
        found = results[f"lora-{rank}"]["geometry"]["all"]
        assert found["updated"] == 14
        assert 1 <= found["effective_rank"] <= rank + 1e-3
    assert results["full"]["geometry"]["all"]["updated"] == 14


def test_kept_results_are_not_run_again(compared, checkpoint, monkeypatch):
    output, results, _ = compared

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(bmt_trainer.comparison.runner, "run_cell", never)
    again = run(planned(checkpoint, output, geometry=True, **TRACKED), quiet())
    assert {r["method"]: r for r in again} == results
    with pytest.raises(AssertionError):  # other settings are another result
        run(planned(checkpoint, output, geometry=True, **TRACKED, steps=4), quiet())


def test_an_interrupted_comparison_runs_what_is_missing(checkpoint, tmp_path, monkeypatch):
    small = planned(checkpoint, tmp_path, methods=["base", "full", "bmt"])
    run_cell = bmt_trainer.comparison.runner.run_cell

    def cut(cell, display):
        if cell.method == "bmt":
            raise KeyboardInterrupt
        return run_cell(cell, display)

    with monkeypatch.context() as patch:
        patch.setattr(bmt_trainer.comparison.runner, "run_cell", cut)
        with pytest.raises(KeyboardInterrupt):
            run(small, quiet())
    assert {json.loads(p.read_text())["method"] for p in tmp_path.glob("*.json")} == {
        "base",
        "full",
    }
    assert [r["method"] for r in run(small, quiet())] == ["base", "full", "bmt"]


@pytest.mark.found
@pytest.mark.parametrize("method", ["bmt", "full"])
def test_a_score_that_fails_loses_no_training(checkpoint, tmp_path, monkeypatch, method):
    """Hours of training are there when a reward or a judge fails after them."""
    steps = []
    shown = bmt_trainer.console.StepProgress.on_step_end

    def counting(self, args, state, control, **rest):
        steps.append(state.global_step)
        return shown(self, args, state, control, **rest)

    def failing(*_):
        raise RewardError("the judge is away")

    monkeypatch.setattr(bmt_trainer.console.StepProgress, "on_step_end", counting)
    one = planned(checkpoint, tmp_path, methods=[method], rates={method: 1e-3})
    with monkeypatch.context() as patch:
        patch.setattr(bmt_trainer.comparison.runner, "score_heldout", failing)
        with pytest.raises(RewardError, match="judge"):
            run(one, quiet())
    assert steps == [1, 2, 3]
    [found] = run(one, quiet())
    assert steps == [1, 2, 3]
    assert found["score"]["total"] == len(found["right"])


def test_results_are_keyed_by_content_not_by_path(checkpoint, tmp_path):
    def name_of(folder, data, text="1"):
        shutil.copytree(checkpoint, folder)
        data.parent.mkdir()
        data.write_text(json.dumps({"prompt": "a", "completion": text}) + "\n")
        made = planned(folder, tmp_path, methods=["base"], dataset=str(data), retention=str(data))
        return next(made.cells()).file.name

    first = name_of(tmp_path / "a" / "model", tmp_path / "b" / "rows.jsonl")
    moved = name_of(tmp_path / "c" / "model", tmp_path / "d" / "rows.jsonl")
    other_data = name_of(tmp_path / "e" / "model", tmp_path / "f" / "rows.jsonl", "2")
    assert first == moved != other_data
    assert first.startswith("model.rows")
    tiny_llama(torch.float32).save_pretrained(tmp_path / "c" / "model")
    changed = planned(tmp_path / "c" / "model", tmp_path, methods=["base"])
    unchanged = planned(tmp_path / "a" / "model", tmp_path, methods=["base"])
    assert next(changed.cells()).file != next(unchanged.cells()).file


@pytest.mark.parametrize(
    ("setting", "name", "texts"),
    [
        ("chat_template", "t.jinja", ("{{ messages }}", "{{ messages }} ")),
        ("grader", "g.py", ("def f(completion, answer): return 1\n", "f = len\n")),
    ],
)
def test_results_are_keyed_by_the_content_of_files_in_settings(
    checkpoint, tmp_path, setting, name, texts
):
    file, keys = tmp_path / name, []
    for text in (*texts, texts[0]):
        file.write_text(text)
        value = f"{file}:f" if setting == "grader" else str(file)
        made = planned(checkpoint, tmp_path, methods=["base"], **{setting: value})
        keys.append(next(made.cells()).file.name)
    assert keys[0] == keys[2] != keys[1]


def test_evaluation_sets_and_retention_are_rendered_as_the_run(checkpoint, tmp_path, monkeypatch):
    seen = []

    def generated(model, tokenizer, examples, **_):
        seen.append({json.dumps(dict(e.template_kwargs)) for e in examples})
        return [""] * len(examples)

    monkeypatch.setattr("bmt_trainer.comparison.measures.generate", generated)
    template = tmp_path / "t.jinja"
    template.write_text(TEMPLATE + "{{ mood }}")
    (tmp_path / "gsm8k").mkdir()
    row = {"question": "1 + 1?", "answer": "2 #### 2"}
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps(row) + "\n")
    changes = {"chat_template": str(template), "chat_template_kwargs": {"mood": "good"}}
    changes |= {"suites": "gsm8k", "suites_data": tmp_path, "retention": "task:arithmetic"}
    changes |= {"retention_examples": 2, "track_every": 3, "methods": ["bmt"]}
    run(planned(checkpoint, tmp_path / "out", **changes), quiet())
    assert len(seen) == 4  # retention before and after, held-out examples, the set
    assert all(one == {'{"mood": "good"}'} for one in seen)


def test_data_sets_of_several_files_are_known_by_content(tmp_path):
    def made(folder, text):
        (tmp_path / folder / "d").mkdir(parents=True)
        for name in ("a.jsonl", "b.csv"):
            (tmp_path / folder / "d" / name).write_text(name + text)
        names = ("d", "d/*", "d/a.jsonl?limit=1")
        return [provenance.of_dataset(str(tmp_path / folder / name)) for name in names]

    first, moved, other = made("x", "1"), made("y", "1"), made("z", "2")
    assert first == moved
    assert not set(first) & set(other)
    both = f"{tmp_path}/x/d/a.jsonl?weight=1 + org/name?weight=2"
    name, digest, *rest = provenance.of_dataset(both).split(" ")
    assert (name, len(digest), rest) == ("a.jsonl?weight=1", 64, ["+", "org/name?weight=2"])
    assert provenance.without_folder("d/a.csv.zst?limit=1") == "a.csv.zst?limit=1"
    assert provenance.without_folder("org/name") == "org/name"
    assert provenance.of_dataset("s3://b/x.jsonl?limit=1") == "s3://b/x.jsonl?limit=1"
    assert provenance.of_dataset("task:initials?least=3") == "task:initials?least=3"


def test_processes_share_the_runs_of_a_folder(checkpoint, tmp_path, monkeypatch):
    """The second process runs what the first does not, and then reads the first one's result."""
    made = planned(checkpoint, tmp_path, methods=["full", "base"])
    started, go_on, here = threading.Event(), threading.Event(), threading.current_thread()
    by = []

    def run_cell(cell, display):
        ours = threading.current_thread() is here
        by.append((cell.method, ours))
        if ours:
            go_on.set()
        else:
            started.set()
            assert go_on.wait(30)
        return made_up(cell)

    monkeypatch.setattr(bmt_trainer.comparison.runner, "run_cell", run_cell)
    other = threading.Thread(target=run, args=(made, quiet()))
    other.start()
    assert started.wait(30)
    assert [r["method"] for r in run(made, quiet())] == ["full", "base"]
    other.join(30)
    assert by == [("full", False), ("base", True)]


def test_grpo_and_sdft_take_baselines_too(checkpoint, tmp_path):
    common = {"methods": ["full", "lora-1", "mth-99"], "max_length": 512, "validation": 4}
    grpo = {"prompts_per_step": 2, "completions": 4, "micro_batch": 4, "reward": "number"}
    sdft = {"prompts_per_step": 4, "micro_batch": 4, "max_length": 1024, "methods": ["full"]}
    for trainer, settings in (("grpo", {**common, **grpo}), ("sdft", {**common, **sdft})):
        values = {k: v for k, v in {**SMALL, **settings}.items() if k != "batch_size"}
        made = plan.read(
            None,
            {
                **values,
                **{"trainer": trainer, "model": str(checkpoint), "dataset": "task:initials"},
                "output": tmp_path / trainer,
                "steps": 2,
            },
        )
        results = run(made, quiet())
        assert [r["method"] for r in results] == settings["methods"]
        assert all(len(r["right"]) == 6 for r in results)


def test_grpo_regularizes_a_baseline_to_the_base(checkpoint, tmp_path):
    """No answer is right, so the loss is β times the KL divergence: 0 before the first update."""
    values = {
        **{k: v for k, v in SMALL.items() if k != "batch_size"},
        **{"trainer": "grpo", "model": str(checkpoint), "dataset": "task:initials"},
        **{"methods": ["full@0.01"], "output": tmp_path, "steps": 2, "beta": 1.0, "validation": 0},
        **{"prompts_per_step": 2, "completions": 2, "micro_batch": 4, "reward": "number"},
    }
    [result] = run(plan.read(None, values), quiet())
    first, second = result["logs"]["loss"]
    assert abs(first) < 1e-3 < second


def test_the_table(compared):
    output, _, _ = compared
    rows = tables.rows(tables.read([output]))
    by_method = {row.method: row for row in rows}
    assert set(by_method) == set(METHODS)
    assert by_method["base"].against is None
    assert by_method["bmt"].against.total == 6
    low, high = by_method["full"].interval
    assert low <= by_method["full"].accuracy + 1e-9 <= high
    assert len(by_method["bmt"].cells()) == len(tables.HEADER)
    with pytest.raises(DataError, match=r"nowhere cannot be read"):
        tables.read([output / "nowhere"])
    (output / "empty").mkdir()
    with pytest.raises(DataError, match="no results"):
        tables.read([output / "empty"])


def test_a_mean_over_data_sets_is_unweighted():
    base = {"model": "m", "trainer": "sft", "size_bytes": 0, "changes": {}, "score": {}}
    results = [
        {**base, "method": "base", "dataset": "a", "right": "0000", "score": {"total": 4}},
        {**base, "method": "base", "dataset": "b", "right": "01", "score": {"total": 2}},
        {**base, "method": "bmt", "dataset": "a", "right": "1000", "score": {"total": 4}},
        {**base, "method": "bmt", "dataset": "b", "right": "01", "score": {"total": 2}},
    ]
    first, second = tables.rows(results)
    assert (first.accuracy, second.accuracy) == (0.25, (0.25 + 0.5) / 2)
    assert (second.against.gained, second.against.lost, second.against.total) == (1, 0, 6)
    other = [{**r, "trainer": "grpo"} for r in results]
    assert [r.model for r in tables.rows([*results, *other])] == ["m, sft", "m, grpo"] * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["magic"]}, "not one of base"),
        ({"methods": ["lora-0"]}, "not one of base"),
        ({"methods": ["mth-50"]}, "rate"),
        ({"methods": ["full@fast"]}, "not a number"),
        ({"methods": []}, "at least one"),
        ({"steps": 0}, "steps"),
        ({"validation": 4, "patience": 1}, "patience: 1 has no effect in a comparison"),
        ({"track_heldout": True}, "no measurements to score at"),
        ({"track_heldout": True, "track_every": 1, "heldout": 0}, "heldout is 0, so there are no"),
        ({"stepz": 1}, "did you mean steps"),
        ({"sweep": {"eta": 0.1}}, "list of values"),
        ({"rates": {"full": "fast"}}, "not a number"),
        ({"trainer": "ppo"}, "trainer"),
        ({"grader": "missing.py:f"}, "missing.py"),
    ],
)
def test_bad_plans(checkpoint, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        planned(checkpoint, tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment": "codes.py:Codes"}, "environment: a comparison"),
        ({"tools": "codes.py:f"}, "tools: a comparison"),
        ({"methods": ["full"], "server": "http://there"}, "server: rollouts of full"),
    ],
)
def test_rollouts_that_a_comparison_cannot_score_are_refused(checkpoint, tmp_path, changes, words):
    values = {"trainer": "grpo", "methods": ["bmt"], "dataset": "task:initials"}
    values |= {"model": str(checkpoint), "output": tmp_path, **changes}
    with pytest.raises(ConfigError, match=words):
        plan.read(None, values)


def test_recipes_extend_each_other(tmp_path):
    (tmp_path / "shared.yaml").write_text("trainer: sft\nmodel: m\nsteps: 7\nmethods: base\n")
    path = tmp_path / "row.yaml"
    path.write_text(
        "extends: shared.yaml\nmethods: base, bmt\ndatasets: [task:initials, task:arithmetic]\n"
        "output: out\nsweep: {eta: [0.001, 0.002]}\n"
    )
    made = plan.read(path, {"steps": 9})
    cells = list(made.cells())
    assert [(c.method, c.dataset, dict(c.changes)) for c in cells] == [
        ("base", "task:initials", {}),
        ("bmt", "task:initials", {"eta": 0.001}),
        ("base", "task:arithmetic", {}),
        ("bmt", "task:arithmetic", {"eta": 0.001}),
        ("bmt", "task:initials", {"eta": 0.002}),
        ("bmt", "task:arithmetic", {"eta": 0.002}),
    ]
    assert {c.config().steps for c in cells} == {9}
    assert len({c.file for c in cells}) == 6
    path.write_text("extends: row.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        plan.read(path, {})


def test_a_mask_is_its_hard_weight():
    model = tiny_llama()
    attached = attach(model)
    name, layer = next(iter(attached.layers.items()))
    with torch.no_grad():
        layer.gate_logits[0, :5] = -1
    tuned = baselines.masked(model, attached, lambda: 0)
    found = {n: (a, b) for n, a, b in tuned.weights(model)}
    before, after = found[name]
    assert (before[0, :5] != 0).all()
    assert not after[0, :5].any()
    assert all(a is b for n, (a, b) in found.items() if n not in attached.layers)
    assert isinstance(tuned.base(), type(attached.state.use("off")))
    assert baselines.full(tiny_llama()).tuned is nullcontext
