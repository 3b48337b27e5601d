"""The GPU command without a GPU: its parts, their limits, what is kept, and the arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import bmt_core
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import arithmetic, base, device, machine_code, training
from benchmarks.gpu.parts import PARTS, Job, Outcome, Part, figures, run
from benchmarks.gpu.summary import line, report, summary

CHILD = "tests.support.children.gpu_parts"


def test_a_part_that_fails_or_hangs_keeps_its_figures_and_stops_no_other(tmp_path, monkeypatch):
    parts = (
        Part("hangs", f"{CHILD}:hangs", 0.6, ()),
        Part("fails", f"{CHILD}:fails", 6, ()),
        Part("done", f"{CHILD}:done", 6, ()),
        Part("needy", f"{CHILD}:done", 6, ("fails", "done")),
    )
    monkeypatch.setattr(command, "PARTS", parts)
    (tmp_path / "needy.jsonl").write_text('{"figure": "of an earlier run"}\n')
    assert command.main(["--tiny", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "summary.json").read_text())
    assert [p["end"] for p in found["parts"]] == ["out of time", "failed", "done", "not run"]
    assert [found["figures"][p.name].get("figure") for p in parts] == [1, 1, 2, None]
    assert "the reason" in found["parts"][1]["log"]
    assert "it needs fails" in line(found["parts"][3])
    assert line(found["parts"][1]).endswith("the reason")
    assert found["measured"] is False
    assert found["ratios"] == "not measured"


def test_a_run_on_a_gpu_without_a_figure_measured_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "provenance", dict)
    (tmp_path / "base.jsonl").write_text('{"random base": {"seconds": 1}}\n')
    outcomes = [Outcome("base", "done", 1.0), Outcome("masks", "failed", 1.0)]
    found = command._write(tmp_path, Job(str(tmp_path)), outcomes)
    assert (found["measured"], found["ratios"]) == (False, "not measured")
    (tmp_path / "masks.jsonl").write_text('{"start_s": 9.5}\n')
    assert command._write(tmp_path, Job(str(tmp_path)), outcomes)["measured"] is True


def test_a_part_may_take_the_time_that_earlier_ones_left(tmp_path, monkeypatch):
    limits = []

    def took(part, job, environment):
        limits.append(part.limit_s)
        return Outcome(part.name, "done", {"base": 20.0, "one": 70.0, "two": 1.0}[part.name])

    parts = (Part("base", "", 60, ()), Part("one", "", 50, ()), Part("two", "", 30, ()))
    for name, value in (("PARTS", parts), ("run", took), ("provenance", dict)):
        monkeypatch.setattr(command, name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    command.main(["--out", str(tmp_path)])
    assert limits == [60, 90, 50]
    limits.clear()
    # A download has an hour, of which no other part gets any.
    command.main(["--out", str(tmp_path), "--model", "a/b"])
    assert limits == [3600, 50, 30]


def test_some_parts_bring_those_that_they_need():
    assert [p.name for p in command.chosen(["masks", "step"])] == [
        "device",
        "base",
        "masks",
        "step",
    ]
    assert command.chosen([]) == [*PARTS]


@pytest.mark.parametrize(
    ("capability", "free", "total", "reason"),
    [
        ((9, 0), 79, 80, None),
        ((7, 5), 15, 16, "bfloat16 needs"),
        ((8, 0), 60, 80, "hold 20.0 GB of the device, and at most 8.0"),
        ((8, 6), 11.9, 12, "--model"),
    ],
)
def test_a_device_that_cannot_run_the_parts_is_named(capability, free, total, reason):
    found = device.unfit(capability, int(free * 1e9), int(total * 1e9), random_base=True)
    assert found is None if reason is None else reason in found


def test_what_is_not_installed_is_named_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "PACKAGES", ("torch", "bmt_absent"))
    with pytest.raises(device.UnfitError, match=r"not installed: bmt_absent; run .*setup\.py"):
        device.check(Job(str(tmp_path)), lambda key, value: None)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    assert "install gcc" in device.compiler_missing()
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(device.sysconfig, "get_paths", lambda scheme: {"include": "/no/such"})
    assert "python3-dev" in device.compiler_missing()


def test_all_limits_together_are_below_eight_minutes():
    assert sum(part.limit_s for part in PARTS) < 480


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_nothing_is_measured(tmp_path):
    with pytest.raises(SystemExit, match="nothing was measured"):
        command.main(["--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_line_that_was_cut_is_left_out(tmp_path):
    (tmp_path / "bare.jsonl").write_text('{"a": 1}\n{"b": 2')
    assert figures(tmp_path, "bare") == {"a": 1}
    assert figures(tmp_path, "masks") == {}


def test_ratios_and_parity():
    bare = {
        "32 sequences, base": {"tokens_s": 1000},
        "parity base": [[1, 2], [3, 4]],
        "parity mask 0": [[1, 2], [3, 5]],
    }
    masks = {
        "32 sequences, base": {"tokens_s": 990},
        "32 sequences, 4 masks": {"tokens_s": 900},
        "64 sequences, 4 masks": {"tokens_s": 900},
        "under load: known masks": {"tokens_s": 800},
        "under load: new versions arrive": {"tokens_s": 760},
        "parity base": [[1, 2], [3, 4]],
        "parity mask 0, corrected": [[1, 2], [9, 9]],
        "parity mask 0, in place": [[1, 2], [3, 4]],
    }
    assert summary({"bare": bare, "masks": masks}) == {
        "32 sequences, base, over bare vLLM": 0.99,
        "32 sequences, 4 masks, over bare vLLM": 0.9,
        "new versions under load, over known masks": 0.95,
        "parity base: tokens of the checkpoint's": 1.0,
        "parity mask 0, corrected: tokens of the checkpoint's": 1.0,
        "parity mask 0, in place: tokens of the checkpoint's": 0.75,
        "tokens in which base and mask 0 agree": 0.75,
    }
    assert summary({"bare": bare}) == {"tokens in which base and mask 0 agree": 0.75}
    assert "nothing was measured" in report({"parts": [], "measured": False, "ratios": ""})


def test_the_random_base_of_an_earlier_run_is_used_if_it_is_whole(tmp_path, monkeypatch):
    job, kept = Job(str(tmp_path), tiny=True), {}
    base.make(job, kept.__setitem__)
    shards = {p: p.stat().st_mtime_ns for p in Path(job.base).glob("*.safetensors")}
    base.make(job, kept.__setitem__)
    assert kept["random base"]["of an earlier run"]
    assert {p: p.stat().st_mtime_ns for p in shards} == shards
    # One that was cut has no config, and a disk without room is named.
    (Path(job.base) / "config.json").unlink()
    for path in shards:
        path.write_bytes(b"")
    monkeypatch.setattr(base.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"needs 0\.0 GB in .*--out"):
        base.make(job, kept.__setitem__)


def test_the_random_base_is_a_checkpoint_that_masks_fit(tmp_path):
    job = Job(str(tmp_path), tiny=True)
    base.make(job, lambda key, value: None)
    shapes = bmt_core.geometry(Path(job.base))
    assert set(shapes.values()) == {(256, 128)}
    assert len(shapes) == 2
    fingerprint = bmt_core.fingerprint(Path(job.base))
    (one, two), (again,) = (
        base.masks(job.base, fingerprint, range(2)),
        base.masks(job.base, fingerprint, range(1)),
    )
    assert one.digest == again.digest != two.digest
    assert base.config(tiny=False)["intermediate_size"] == arithmetic.ROWS


@pytest.mark.parametrize("method", ["live gates", "LoRA r=1"])
def test_a_training_step_of_the_tiny_shape(tmp_path, method):
    job = Job(str(tmp_path), tiny=True)
    found = training._measure(method, job, torch.device("cpu"), 1, 4)
    assert found["ms"] > 0
    assert 0 < found["trained"] < 2 * 256 * 128
    assert found["peak_gb"] == "not measured: no CUDA device"


def test_counted_instructions_are_those_that_a_profiler_saw():
    """8.5 million for 32 tokens on an H100 (docs/results/log/gpu-kernels.md), within a tenth."""
    pytest.importorskip("triton")
    code = arithmetic.Code(machine_code.of_correct(), machine_code.of_tiles(16))
    one_by_one = arithmetic.work(code, 32, 32, grouped=False)
    assert 0.9 < one_by_one.instructions / 8.5e6 < 1.1
    before, after = (arithmetic.work(code, 256, 16, grouped=g) for g in (False, True))
    assert (before.launches, after.launches) == (1, 2)
    assert (after.alone, after.tiles) == (0, 16)
    assert after.instructions < before.instructions / 5
    assert after.bytes < before.bytes / 10


def test_parts_run_in_processes_of_their_own(tmp_path):
    outcome = run(Part("done", f"{CHILD}:done", 30, ()), Job(str(tmp_path), tiny=True), {})
    assert outcome.end == "done"
    assert figures(tmp_path, "done") == {"tiny": True, "figure": 2}
