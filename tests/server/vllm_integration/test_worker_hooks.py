"""vLLM's ways to replace base weights, and its capture of CUDA graphs, as masks see them."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import bmt_core
import numpy as np
import pytest
import torch
from bmt_server.vllm_integration.worker_hooks import base_replacement, capture_cost
from bmt_server.vllm_integration.worker_hooks.base_replacement import watch_model
from safetensors.numpy import save_file
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.worker_base import WorkerBase

pytestmark = pytest.mark.found
METHODS = (
    *("start_weight_update", "update_weights", "finish_weight_update", "reset_weights"),
    *("compute_weight_checksums", "save_sharded_state", "save_tensorized_model"),
    *("sleep", "wake_up", "get_model"),
)


class Base:
    """Stand-in for `BaseWeights` that records what happens around the original calls."""

    def __init__(self, fingerprint: str = "") -> None:
        self.log: list[str] = []
        self.fingerprint = fingerprint

    @contextmanager
    def replacement(self, way: str):
        self.log.append(f"leave for {way}")
        yield
        self.log.append("forget")

    def verified(self, fingerprint: str) -> bool:
        self.log.append("verified" if fingerprint == self.fingerprint else "another")
        return fingerprint == self.fingerprint

    def leave(self) -> None:
        self.log.append("leave")

    def forget(self) -> None:
        self.log.append("forget")

    def expose(self) -> None:
        self.log.append("expose")

    def check_exposed(self) -> None:
        self.log.append("check")


@pytest.fixture
def base(monkeypatch) -> Base:
    """Hooked classes of workers, whose own methods only note their names."""
    made = Base()
    for name in METHODS:
        noted = _noted(made, name)
        monkeypatch.setattr(Worker, name, noted)
    monkeypatch.setattr(WorkerBase, "apply_model", WorkerBase.__dict__["apply_model"])
    base_replacement.watch_workers()
    base_replacement.watch_workers()
    return made


def _noted(base: Base, name: str):
    def method(worker, *args):
        base.log.append(name)
        return worker.model_runner.model

    method.__name__ = name
    return method


def worker(base: Base | None, draft: bool = False):
    manager = {} if base is None else {"lora_manager": SimpleNamespace(base=base)}
    made = object.__new__(Worker)
    made.model_runner = SimpleNamespace(model="the model", **manager)
    made._weight_update_is_draft = draft
    return made


@pytest.mark.parametrize(
    ("call", "log"),
    [
        *((lambda w, n=n: getattr(w, n)(), [f"leave for {n}", n, "forget"]) for n in METHODS[:4]),
        *((lambda w, n=n: getattr(w, n)(), ["leave", n]) for n in METHODS[4:7]),
        (lambda w: w.sleep(1), ["leave", "sleep"]),
        (lambda w: w.sleep(2), ["leave for sleep of level 2", "sleep", "forget"]),
        (lambda w: w.wake_up(), ["wake_up", "forget"]),
        (lambda w: w.get_model(), ["expose", "get_model"]),
        (lambda w: w.apply_model(str.upper), ["expose", "get_model", "check"]),
    ],
)
def test_the_mask_leaves_first_and_values_are_forgotten_after(base, call, log):
    """Each public method of a worker that changes, saves or hands out the base weights."""
    call(worker(base))
    assert base.log == log
    base.log.clear()
    call(worker(None))
    assert not [entry for entry in base.log if "leave" in entry or "forget" in entry]


def test_a_drafter_is_not_the_base(base):
    draft = worker(base, draft=True)
    draft.update_weights()
    draft.finish_weight_update()
    assert base.log == ["update_weights", "finish_weight_update"]


@pytest.fixture
def checkpoint(tmp_path):
    save_file({"model.norm.weight": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


class Model(torch.nn.Module):
    def load_weights(self, weights):
        return {name for name, _ in weights}


class Runner:
    def __init__(self, model, folder, load_format):
        self.model = model
        load = SimpleNamespace(load_format=load_format)
        config = SimpleNamespace(model=str(folder))
        self.vllm_config = SimpleNamespace(load_config=load, model_config=config)

    def reload_weights(self, weights_iterator=None, weights_path=None, is_checkpoint_format=True):
        if weights_path is not None:
            self.vllm_config.model_config.model = weights_path
        self.model.load_weights(weights_iterator or [])


@pytest.mark.parametrize(
    ("options", "load_format", "last"),
    [
        ({}, "auto", "verified"),
        ({}, "dummy", "forget"),
        ({"weights_iterator": [("a", 1)]}, "auto", "forget"),
        ({"is_checkpoint_format": False}, "auto", "forget"),
        ({"weights_path": "other"}, "auto", "another"),
        ({"weights_path": "an/id"}, "auto", "forget"),
    ],
)
def test_only_a_reload_of_the_same_checkpoint_is_verified(
    tmp_path, checkpoint, options, load_format, last
):
    other = tmp_path / "other"
    other.mkdir()
    save_file({"model.norm.weight": np.zeros(3, np.float32)}, other / "model.safetensors")
    if options.get("weights_path") == "other":
        options = {"weights_path": str(other)}
    base, model = Base(bmt_core.fingerprint(checkpoint)), Model()
    runner = Runner(model, checkpoint, load_format)
    watch_model(runner, model, base)
    runner.reload_weights(**options)
    assert base.log[0] == "leave for reload_weights"
    assert base.log[-1] == last


def test_a_trainer_that_loads_weights_itself_is_noticed(checkpoint):
    base, model = Base(), Model()
    watch_model(Runner(model, checkpoint, "auto"), model, base)
    assert model.load_weights([("a", 1)]) == {"a"}
    assert base.log == ["leave for load_weights", "forget"]


def test_the_cost_of_graphs_for_masks_is_said(monkeypatch):
    """One line with time and memory, if vLLM captured anything."""
    said: list[str] = []
    runner = SimpleNamespace(
        capture_model=lambda: 300 << 20, lora_config=None, compilation_config=None
    )
    monkeypatch.setattr(capture_cost, "get_lora_capture_cases", lambda *_: [0, 9])
    capture_cost.report_captures(runner, said.append)
    assert runner.capture_model() == 300 << 20
    assert len(said) == 1
    assert "150 of 300 MiB" in said[0]
    # vLLM's second runner first captures some to estimate their memory.
    runner.capture_model = lambda profile_only: 100 << 20
    capture_cost.report_captures(runner, said.append)
    assert runner.capture_model(profile_only=True) == 100 << 20
    runner.capture_model = lambda: 0
    capture_cost.report_captures(runner, said.append)
    assert runner.capture_model() == 0
    assert len(said) == 1
    assert "1.0 of 2.0 s" in capture_cost.capture_line(2.0, 1 << 20, 2)
    assert "one capture" in capture_cost.capture_line(2.0, 1 << 20, 1)
