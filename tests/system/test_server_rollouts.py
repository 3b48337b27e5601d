"""GRPO whose rollouts come from a real server: restarted, killed, and troubles found at the start.

The same without an engine, and with more kinds of trouble: tests/trainer/methods/rollouts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bmt_core
import pytest
from bmt_client import BmtClient
from bmt_server.registry.api_keys import ApiKeyStore, make_key
from bmt_server.registry.connection import RegistryConnection
from bmt_trainer.errors import TrainerError
from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.grpo import train

from tests.support.scenarios.figures import Figures
from tests.support.scenarios.servers import start
from tests.support.tiny_model import save_tiny_llama
from tests.support.training.display import Lines
from tests.support.training.ranks import RankedRun

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

# Rewards must differ within a group, or the advantages are 0.
REWARD = "def odd(text, answer):\n    return sum(ord(c) % 2 for c in text) / max(1, len(text))\n"
RESTARTS = (2, 5, 8)  # the last checkpoint when the server is ended
STEPS = 12


def checkpoint(folder: Path, seed: int) -> Path:
    """A tiny random Llama that vLLM serves on a CPU."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2}
    return save_tiny_llama(folder, seed=seed, **shape)


class Runs:
    """Runs of `bmt-train grpo` with the key of a server, each a process."""

    def __init__(self, model: Path, folder: Path, url: str, key: str) -> None:
        (folder / "reward.py").write_text(REWARD)
        self.folder, self.key = folder, key
        self.settings = {
            "model": str(model),
            "dataset": "task:initials",
            "heldout": 2,
            "validation": 0,
            "steps": STEPS,
            "prompts_per_step": 4,
            "completions": 4,
            "micro_batch": 8,
            "learning_rate": 0.01,
            "calibration_prompts": 4,
            "max_new_tokens": 12,
            "checkpoint_every": 1,
            "reward": f"{folder / 'reward.py'}:odd",
            "device": "cpu",
            "precision": "fp32",
            "server": url,
        }

    def output(self, name: str) -> Path:
        return self.folder / f"{name}.bmt"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        flags = [f"--{k.replace('_', '-')}={v}" for k, v in self.settings.items()]
        command = [sys.executable, "-m", "bmt_trainer", "grpo", *flags, *more]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, f"--output={self.output(name)}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "BMT_API_KEY": self.key},
            )

    def digest(self, name: str, process: subprocess.Popen[bytes]) -> str:
        """Wait for its end; the mask's digest."""
        assert process.wait(600) == 0, self.log(name)[-3000:]
        return bmt_core.load(self.output(name)).digest

    def wait_for(self, name: str, step: int, process: subprocess.Popen[bytes]) -> None:
        """Return when it has a checkpoint of the step or a later one."""
        folder = self.folder / f"{name}.bmt.run"
        while not any(
            int(p.parent.name.rpartition("-")[2]) >= step
            for p in folder.glob("checkpoint-*/manifest.json")
        ):
            assert process.poll() is None, self.log(name)[-3000:]
            time.sleep(0.02)


def key_of(registry: str, *scopes: str) -> str:
    async def make() -> str:
        store = RegistryConnection(registry)
        made = await ApiKeyStore(store).create(scopes)
        await store.close()
        assert made is not None
        return made[0]

    return asyncio.run(make())


def test_server_rollouts(valkey, admin_key, tmp_path):
    figures = Figures("server_rollouts")
    model = checkpoint(tmp_path / "base", 0)
    flags = ("--max-sparsity", "0.9")
    served = start(model, tmp_path / "server", valkey.url, admin_key, *flags)

    def restart() -> None:
        nonlocal served
        served.stop()
        served = start(model, tmp_path / "server", valkey.url, admin_key, *flags, port=served.port)

    def names() -> list[str]:
        with BmtClient(served.url, admin_key) as client:
            return [mask.name for mask in client.list()]

    runs = Runs(model, tmp_path, served.url, key_of(valkey.url, "infer", "upload"))
    try:
        whole = runs.digest("whole", runs.start("whole"))
        assert names() == []
        size = f"{STEPS} steps, 3 restarts, a key of infer and upload"

        disturbed = runs.start("disturbed")
        for step in RESTARTS:
            runs.wait_for("disturbed", step, disturbed)
            restart()
        same = runs.digest("disturbed", disturbed) == whole
        figures.record("restarted_to_the_same_mask", same, "runs", "== 1", size=size)
        waits = runs.log("disturbed").count("waiting for it up to")
        figures.record("waits", waits, "times", ">= 3", size=size)
        figures.record("masks_left", len(names()), "masks", "== 0", size=size)

        killed = runs.start("killed")
        runs.wait_for("killed", 5, killed)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        [name] = names()
        with BmtClient(served.url, admin_key) as client:
            assert client.get(name).expires is not None
        resumed = runs.digest("killed", runs.start("killed", "--resume")) == whole
        size = f"{STEPS} steps, killed after step 5"
        figures.record("resumed_to_the_same_mask", resumed, "runs", "== 1", size=size)
        figures.record("masks_left_by_a_kill", len(names()), "masks", "== 0", size=size)
    finally:
        served.stop()
    figures.end()


def test_two_processes_over_two_servers(valkey, admin_key, tmp_path, monkeypatch):
    """Two servers of one registry, two processes under FSDP2, killed and resumed."""
    figures = Figures("server_rollouts_several", "two_processes_over_two_servers")
    model = checkpoint(tmp_path / "base", 0)
    served = []

    def names() -> list[str]:
        with BmtClient(served[0].url, admin_key) as client:
            return [mask.name for mask in client.list()]

    try:
        for at in range(2):
            folder = tmp_path / f"server-{at}"
            served.append(start(model, folder, valkey.url, admin_key, "--max-sparsity", "0.9"))
        monkeypatch.setenv("BMT_API_KEY", key_of(valkey.url, "infer", "upload"))
        settings = Runs(model, tmp_path, ",".join(one.url for one in served), "").settings
        settings["micro_batch"] = 4
        whole = RankedRun("grpo", settings, tmp_path / "whole").finish()
        size = f"{STEPS} steps, 2 processes, 2 servers, killed after step 5"
        killed = RankedRun("grpo", settings, tmp_path / "killed")
        killed.strike(signal.SIGKILL, 5)
        figures.record("servers_with_the_mask", len(names()), "servers", "== 2", size=size)
        same = killed.finish("--resume") == whole
        figures.record("resumed_to_the_same_mask", same, "runs", "== 1", size=size)
        figures.record("masks_left", len(names()), "masks", "== 0", size=size)
    finally:
        for one in served:
            one.stop()
    figures.end()


def test_server_rollouts_troubles(valkey, admin_key, tmp_path, monkeypatch):
    """Each ends in one line before weights are loaded."""
    figures = Figures("server_rollouts", "server_rollouts_troubles")
    model = checkpoint(tmp_path / "base", 0)
    # The bound is compared last, so the same server has all troubles.
    flags = ("--max-sparsity", "0.001")
    served = start(model, tmp_path / "server", valkey.url, admin_key, *flags)
    key = key_of(valkey.url, "infer", "upload")
    runs = Runs(model, tmp_path, served.url, key)

    def trouble(kind: str, key: str, fix: str, **changed: object) -> None:
        """A run that ends so."""
        monkeypatch.setenv("BMT_API_KEY", key)
        lines, began = Lines(), time.monotonic()
        config = GrpoConfig(**{**runs.settings, "output": tmp_path / f"{kind}.bmt", **changed})
        with pytest.raises(TrainerError) as caught:
            train(config, lines)
        took, line = time.monotonic() - began, str(caught.value)
        assert fix in line, line
        assert "\n" not in line
        assert "masking" not in lines.text
        figures.record(f"{kind}_told_in", took, "s", "<= 30", size="once", note=line[:120])

    try:
        trouble("key", make_key(("infer",)), "BMT_API_KEY")
        trouble("scope", key_of(valkey.url, "infer"), "--scope upload")
        trouble("base", key, "fingerprint", model=str(checkpoint(tmp_path / "other", 1)))
        trouble("context", key, "--max-model-len", max_new_tokens=600)
        trouble("n", key, "at most 64", completions=200)
        trouble("bound", key, "--max-sparsity")
        os.killpg(served.process.pid, signal.SIGSTOP)
        try:
            trouble("hung", key, "did not answer")
        finally:
            os.killpg(served.process.pid, signal.SIGCONT)
        served.stop()
        trouble("down", key, "start it")
    finally:
        served.stop()
    figures.end()
