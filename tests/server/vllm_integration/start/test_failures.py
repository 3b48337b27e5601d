"""Starts that fail because of the operator's settings end in one line with the cause."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace

import pytest
from bmt_server.cli import serve
from bmt_server.settings import SettingsError
from bmt_server.vllm_integration.start import failures
from bmt_server.vllm_integration.start.parsers import check_parsers
from pydantic import BaseModel, ValidationError, field_validator


def flags(model, **chosen) -> Namespace:
    """vLLM's arguments as far as parsers read them."""
    none = dict.fromkeys(
        ("reasoning_parser", "reasoning_parser_plugin", "tool_call_parser", "tool_parser_plugin")
    )
    options = Namespace(reasoning_parser="", reasoning_parser_plugin="")
    rest = {"tokenizer": None, "tokenizer_mode": "auto", "tokenizer_revision": None}
    given = {"model": str(model), "trust_remote_code": False, "skip_tokenizer_init": False}
    return Namespace(**none | rest | given | {"structured_outputs_config": options} | chosen)


@pytest.mark.parametrize(
    "chosen",
    [
        {"reasoning_parser": "deepseek_r1"},
        {
            "structured_outputs_config": Namespace(
                reasoning_parser="deepseek_r1", reasoning_parser_plugin=""
            )
        },
        {"tool_call_parser": "deepseek_v3"},
    ],
    ids=["reasoning", "in the JSON of a flag", "tools"],
)
def test_a_parser_that_does_not_fit_the_tokenizer_is_one_line(smol, chosen):
    with pytest.raises(SettingsError) as caught:
        check_parsers(flags(smol, **chosen))
    line = str(caught.value)
    assert "\n" not in line
    assert str(smol) in line
    assert "does not fit the tokenizer" in line
    assert "remove the flag" in line


@pytest.mark.parametrize("flag", ["reasoning_parser", "tool_call_parser"])
def test_an_unknown_parser_is_named_with_those_that_exist(smol, flag):
    with pytest.raises(SettingsError, match=r"-parser no_such is none of .*qwen3.*") as caught:
        check_parsers(flags(smol, **{flag: "no_such"}))
    assert flag.replace("_", "-") in str(caught.value)


def test_parsers_that_fit_pass(smol):
    check_parsers(flags(smol))
    check_parsers(flags(smol, tool_call_parser="hermes"))


class Settings(BaseModel):
    length: int

    @field_validator("length")
    @classmethod
    def bound(cls, value: int) -> int:
        raise ValueError("the model has 8192 positions.\nLower --max-model-len")


def raised(function: str, error: Exception) -> Exception:
    """`error` as a function of that name raises it."""
    scope = {"error": error}
    exec(f"def {function}(): raise error", scope)
    try:
        scope[function]()
    except type(error) as caught:
        return caught
    raise AssertionError


def test_errors_about_settings_are_told_from_others(tmp_path):
    try:
        Settings(length=1)
    except ValidationError as error:
        wrong = raised("create_engine_config", error)
    line = failures.cause(wrong, str(tmp_path))
    assert line == (
        "vLLM refuses these settings: the model has 8192 positions. Lower --max-model-len"
    )
    taken = raised("create_server_socket", OSError(98, "Address already in use"))
    assert failures.cause(taken, str(tmp_path)) == (
        "cannot listen on the given --host and --port: Address already in use"
    )
    assert failures.cause(raised("compute", ValueError("a fault of ours")), str(tmp_path)) == ""


def test_the_first_error_of_engine_and_workers_is_the_cause(tmp_path, monkeypatch):
    """vLLM's main process knows only that its engine ended."""
    logger = logging.getLogger("vllm")
    monkeypatch.setattr(logger, "handlers", [])
    failures.record_start_errors(str(tmp_path))
    child = logging.getLogger("vllm.v1.engine.core")
    for message, error in (
        ("a request failed", KeyError("not about the start")),
        ("WorkerProc failed to start.", ValueError("28 GiB are needed,\nthe device has 24")),
        ("EngineCore failed to start.", RuntimeError("a worker ended")),
    ):
        try:
            raise error
        except Exception:
            child.exception(message)
    line = failures.cause(RuntimeError("Engine core initialization failed."), str(tmp_path))
    assert line == "the engine did not start: 28 GiB are needed, the device has 24"


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (raised("create_engine_config", ValueError("no such --dtype")), SettingsError),
        (raised("compute", ZeroDivisionError()), ZeroDivisionError),
    ],
)
def test_serve_prints_the_cause_and_a_fault_of_ours_keeps_its_traceback(
    tmp_path, monkeypatch, error, seen
):
    def cmd(args):
        raise error

    module = type(sys)("vllm.entrypoints.cli.serve")
    module.ServeSubcommand = type("ServeSubcommand", (), {"cmd": staticmethod(cmd)})
    monkeypatch.setitem(sys.modules, "vllm.entrypoints.cli.serve", module)
    monkeypatch.setattr(serve.plugin, "register", lambda: None)
    settings = Namespace(export_env=lambda: None, keep_alive_s=75, stats_dir=str(tmp_path))
    with pytest.raises(seen, match="no such --dtype" if seen is SettingsError else None):
        serve._run_vllm(settings, Namespace())
