"""Settings: bounds, units, the environment variable, and everything derived from the fields."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import typer
from bmt_server.cli.main import app
from bmt_server.cli.options import with_settings
from bmt_server.settings import ENV, Settings, SettingsError, options
from typer.testing import CliRunner

DERIVED: dict[str, Any] = {
    "model_id": "m",
    "model_path": "/m",
    "fingerprint": "ab" * 32,
    "gates": {"g": (2, 3)},
}
NUMBERS = [name for name, _, kind in options() if kind in (int, float)]
FLAGGED = [(name, option) for name, option, _ in options() if option.flag]


def settings(**more: Any) -> Settings:
    return Settings(**{**DERIVED, **more})


def experts(layers: int, number: int) -> dict[str, tuple[int, int]]:
    name = "model.layers.{}.mlp.experts.{}.gate_proj.weight"
    return {name.format(i, e): (768, 2048) for i in range(layers) for e in range(number)}


def test_thousands_of_gates_reach_a_process_that_is_started(monkeypatch):
    """A variable of more than 128 KiB would end the start of each child with E2BIG."""
    monkeypatch.setenv(ENV, "")
    whole = settings(gates=experts(94, 128))
    whole.export_env()
    code = "from bmt_server.settings import Settings; print(len(Settings.from_env().gates))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 94 * 128
    assert Settings.from_env() == whole
    with pytest.raises(SettingsError, match="serve a model with fewer experts"):
        settings(gates=experts(94, 512)).export_env()


def parse(*arguments: str) -> Any:
    """Settings that a command receives for these arguments, or the error's text."""
    received: dict[str, Any] = {}

    @with_settings
    def command(**chosen: Any) -> None:
        received.update(chosen)

    only = typer.Typer()
    only.command()(command)
    done = CliRunner().invoke(only, arguments, env={"COLUMNS": "1000", "TERMINAL_WIDTH": "1000"})
    assert done.exit_code in (0, 2), done.output
    return received if done.exit_code == 0 else done.output


def test_each_field_has_a_help_text_and_each_number_a_unit_and_a_bound():
    for name, option, kind in options():
        assert option.help.endswith("."), name
        assert bool(option.unit) == (kind in (int, float)), name
        if kind in (int, float):
            assert option.least is not None or option.above is not None, name


def test_units_are_in_the_names():
    for name, option, _ in options():
        for unit, ending in (("bytes", "_bytes"), ("s", "_s")):
            assert (option.unit == unit) == name.endswith(ending), name
        for unit, ending in (("MiB", "-mib"), ("GiB", "-gib"), ("ms", "-ms")):
            assert (option.flag_unit == unit) == option.flag.endswith(ending), name


def test_the_environment_variable_keeps_all_settings(monkeypatch):
    monkeypatch.setenv(ENV, "")
    assert Settings.from_env() is None
    whole = settings(mask_mode="delta", scatter_quantum_s=0.033, key_rate=2.5, no_auth=True)
    whole.export_env()
    assert Settings.from_env() == whole


def test_unknown_settings_are_errors():
    raw = {**json.loads(settings().to_json()), "max_quantum_s": 1}
    with pytest.raises(SettingsError, match="max_quantum_s"):
        Settings.from_json(json.dumps(raw))


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds_are_checked_and_named(name):
    option = {f.name: f for f in fields(Settings)}[name].metadata["option"]
    low = option.least if option.least is not None else option.above
    for wrong in (low - 1, float("nan"), "1", True, None):
        with pytest.raises(SettingsError, match=name):
            settings(**{name: wrong})
    if option.most is not None:
        assert getattr(settings(**{name: option.most}), name) == option.most
        with pytest.raises(SettingsError, match=f"it must be at most {option.most}"):
            settings(**{name: option.most + 1})
    if option.least is not None:
        assert getattr(settings(**{name: option.least}), name) == option.least


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"mask_memory_bytes": 1 << 19},
            "mask_memory_bytes (--mask-memory-mib) is 524288 bytes (0.5 MiB); it must be at least "
            "1048576 bytes (1 MiB)",
        ),
        ({"max_sparsity": 0}, "max_sparsity (--max-sparsity) is 0; it must be above 0"),
        ({"queue": 0}, "queue (--max-num-queued-reqs) is 0 sequences; it must be at least 1 seq"),
        ({"mask_mode": "fast"}, "mask_mode (--mask-mode) is 'fast'; it must be one of auto, delt"),
        ({"no_auth": "yes"}, "no_auth (--no-auth) is 'yes'; it must be a bool"),
    ],
)
def test_errors_name_the_value_the_limit_and_the_flag(values, message):
    with pytest.raises(SettingsError) as error:
        settings(**values)
    assert str(error.value).startswith(message)


def test_flags_default_to_the_fields_defaults():
    received = parse()
    assert received.keys() == {name for name, _ in FLAGGED}
    for name, value in received.items():
        assert value == getattr(Settings, name), name


def test_flags_have_the_units_that_their_names_say():
    flags = ("--mask-memory-mib", "7", "--mask-cache-gib", "0.5", "--scatter-quantum-ms", "33")
    received = parse(*flags, "--scatter-max-wait-ms", "1.5", "--hang-seconds", "2", "--no-auth")
    assert received["mask_memory_bytes"] == 7 << 20
    assert received["mask_cache_bytes"] == 1 << 29
    assert received["scatter_quantum_s"] == 33 / 1000
    assert received["scatter_max_wait_s"] == 0.0015
    assert received["hang_s"] == 2
    assert received["no_auth"] is True


def test_former_names_of_flags_are_accepted_and_hidden():
    assert parse("--mask-memory", "7")["mask_memory_bytes"] == 7 << 20
    assert parse("--max-density", "0.2")["max_sparsity"] == 0.2
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    assert "--max-sparsity" in shown
    assert "--max-density" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mask-memory-mib", "0"), ("--mask-memory-mib", "1")),
        (("--mask-memory", "0"), ("--mask-memory-mib", "at least 1048576 bytes (1 MiB)")),
        (("--max-sparsity", "0"), ("--max-sparsity", "above 0")),
        (("--scatter-max-wait-ms", "nan"), ("--scatter-max-wait-ms", "1")),
        (("--mask-mode", "fast"), ("--mask-mode", "scatter")),
    ],
)
def test_flags_out_of_bounds_are_usage_errors(arguments, words):
    output = parse(*arguments)
    assert isinstance(output, str)
    for word in words:
        assert word in output


def test_settings_and_help_need_no_heavy_library():
    for module in ("bmt_server.settings", "bmt_server.cli.main"):
        code = f"import sys, {module}; print(*sys.modules)"
        loaded = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
        assert not {"torch", "vllm", "transformers", "redis", "fastapi"} & set(loaded), module
        assert ("typer" in loaded) == module.endswith("main")
