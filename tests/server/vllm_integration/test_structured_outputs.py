"""Structured outputs: the backend that is fixed at start, and its reasons."""

from __future__ import annotations

import itertools
import json
import os
import time
from types import SimpleNamespace

import pytest
from bmt_server.cli import serve
from bmt_server.vllm_integration import structured_outputs
from bmt_server.vllm_integration.repetitions import expanded_size
from bmt_server.vllm_integration.structured_outputs import validate_for_backend
from vllm.config.structured_outputs import StructuredOutputsConfig
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from tests.support.tiny_model import byte_tokenizer

OBJECT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TUPLE = {"type": "array", "items": [{"type": "string"}]}
WANTED = {
    "object": {"json": OBJECT},
    "letters": {"regex": "\\p{L}+"},
    "tuple": {"json": TUPLE},
    "itself": {"json": {"$ref": "#"}},
    "choice": {"choice": ["a", "b"]},
    "grammar": {"grammar": "root ::= "},
    "tag": {"structural_tag": json.dumps({"type": "structural_tag", "format": {"type": "no"}})},
    "json": {"json": "{"},
}


def parsed(monkeypatch, folder, *flags):
    """Arguments of `bmt-server serve` with these flags of vLLM's."""
    monkeypatch.setenv(structured_outputs.STRICT_TOOLS_ENV, "")
    monkeypatch.delenv(structured_outputs.STRICT_TOOLS_ENV)
    monkeypatch.setattr(serve, "say", lambda text: None)
    (folder / "config.json").write_text("{}")
    return serve._parse_vllm_flags(str(folder), flags)


@pytest.mark.parametrize(
    ("flags", "backend", "compact"),
    [
        ((), "xgrammar", False),
        (("--structured-outputs-config.backend", "guidance"), "guidance", False),
        (("--structured-outputs-config.backend=outlines",), "outlines", False),
        (("--structured_outputs_config", '{"backend": "guidance"}'), "guidance", False),
        (('--structured-outputs-config={"backend": "lm-format-enforcer"}',),)
        + ("lm-format-enforcer", False),
        (("--structured-outputs-config", '{"backend": "auto"}'), "xgrammar", False),
        (("--structured-outputs-config.disable_any_whitespace", "true"), "xgrammar", True),
        (("--structured-outputs-config.disable_additional_properties", "true"), "guidance", False),
        (("--tokenizer-mode", "mistral"), "guidance", False),
        (
            ("--tokenizer-mode", "mistral", "--structured-outputs-config.backend", "xgrammar"),
            "xgrammar",
            False,
        ),
    ],
)
def test_one_backend_is_set_at_start(monkeypatch, tmp_path, flags, backend, compact):
    """The operator's, in each spelling of the flag, or else the tokenizer's."""
    config = parsed(monkeypatch, tmp_path, *flags).structured_outputs_config
    assert (config.backend, config.disable_any_whitespace) == (backend, compact)
    # Structural tags are of one backend; with others, forced tools are JSON schemas.
    enforced = os.environ.get(structured_outputs.STRICT_TOOLS_ENV)
    assert enforced == (None if backend == "xgrammar" else "0")


def test_a_file_of_flags_names_the_backend(monkeypatch, tmp_path):
    file = tmp_path / "flags.yaml"
    file.write_text("structured-outputs-config:\n  backend: guidance\n")
    args = parsed(monkeypatch, tmp_path, "--config", str(file))
    assert args.structured_outputs_config.backend == "guidance"


@pytest.mark.parametrize(
    ("flags", "level", "ours"),
    [
        ((), "auto", True),
        (("--tool-strict-level", "auto"), "auto", False),
        (("--tool-strict-level=function",), "function", False),
        (("--tool_strict_level", "parameter"), "parameter", False),
    ],
)
def test_the_operators_level_of_strictness_stands(monkeypatch, tmp_path, flags, level, ours):
    args = parsed(monkeypatch, tmp_path, *flags)
    assert serve._take_over_flags(args)["strict_forced_tools"] is ours
    assert args.tool_strict_level == level


def verdict(backend: str, wanted: dict) -> str:
    """ "ok", or the refusal of one request."""
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**wanted))
    try:
        validate_for_backend(
            SamplingParams._validate_structured_outputs,
            params,
            SimpleNamespace(is_diffusion=False),
            StructuredOutputsConfig(backend=backend),
            byte_tokenizer(),
        )
    except VLLMValidationError as error:
        return str(error)
    assert params.structured_outputs._backend == backend
    return "ok"


@pytest.mark.found
def test_no_request_decides_what_later_ones_may_ask():
    """Each request in each order: one answer, for the engine has one backend."""
    alone = {name: verdict("xgrammar", wanted) for name, wanted in WANTED.items()}
    assert [n for n, v in alone.items() if v == "ok"] == ["object", "itself", "choice"]
    for first, second in itertools.permutations(WANTED, 2):
        verdict("xgrammar", WANTED[first])
        assert verdict("xgrammar", WANTED[second]) == alone[second]


@pytest.mark.found
@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
def test_a_refusal_names_backend_and_reason(backend):
    refused = {n: v for n, w in WANTED.items() if (v := verdict(backend, w)) != "ok"}
    assert len(refused) > 1
    for text in refused.values():
        head, _, reason = text.partition("cannot do this: ")
        assert f"of this server, {backend}, " in head
        assert len(reason) > 20
        assert "/project/" not in text
        assert "parameter=structured_outputs" in text
    if backend == "xgrammar":
        assert "Unicode" in refused["letters"] or "\\p" in refused["letters"]


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        ("abc", 3),
        ("a{3}", 3),
        ("a{1,9}b", 10),
        ("(ab){2,5}", 10),
        ("(a{1,99}){1,99}", 9801),
        ("(a{1,9999}){1,9999}", 99_980_001),
        ("((a{5,}|b){2}c)*", 13),
        (r"\{9999}[{9]\d{2}", 9),
        ("[]a]{4}x{y}", 8),
        ("^[a-z]{1,64}@[a-z]{1,64}\\.[a-z]{2,8}$", 138),
        ("a{" + "9" * 5000 + "}", int("9" * 30)),
        ("(((", 0),
        (")))a{", 5),
    ],
)
def test_repetitions_are_counted(pattern, size):
    assert expanded_size(pattern) == size


def test_repetitions_inside_each_other_are_bounded():
    """Wherever a pattern stands, before a backend reads it."""
    pattern = "(a{1,9999}){1,9999}"
    schema = {"properties": {"a": {"items": {"type": "string", "pattern": pattern}}}}
    keys = {"type": "object", "patternProperties": {pattern: {}}}
    tag = {"type": "structural_tag", "format": {"type": "regex", "pattern": pattern}}
    for wanted in (
        {"regex": pattern},
        {"json": schema},
        {"json": json.dumps(keys)},
        {"structural_tag": json.dumps(tag)},
        {"grammar": f'root ::= Regex("{pattern}")'},
        {"grammar": 'root ::= ("a"{1,9999}){1,9999}'},
    ):
        started = time.process_time()
        assert "repetitions are expanded" in verdict("xgrammar", wanted)
        assert time.process_time() - started < 1
    assert verdict("xgrammar", {"regex": "(a{1,99}){1,99}"}) == "ok"
    assert verdict("xgrammar", {"grammar": 'root ::= "{" "a"{1,9} "}"'}) == "ok"
