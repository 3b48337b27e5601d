"""Names of flags, checked without vLLM; the table is compared with vLLM's own parser."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from bmt_server.cli.main import app
from bmt_server.vllm_integration.arguments.known import unknown_flag, unknown_key
from bmt_server.vllm_integration.arguments.root_path import checked_root_path
from bmt_server.vllm_integration.unsupported_flags import UnsupportedFlagError
from bmt_server.vllm_integration.versions.check import cli_arguments
from typer.testing import CliRunner

OWN = ("--mask-mode", "--mask-memory-mib")


@pytest.fixture(scope="module")
def parser():
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return cli_arguments().make_arg_parser(FlexibleArgumentParser(prog="bmt-server serve"))


def test_every_flag_of_vllm_is_known(parser):
    for action in parser._actions:
        for flag in action.option_strings:
            value = () if action.nargs == 0 else ("-1",)
            for spelled in (flag, flag[:2] + flag[2:].replace("-", "_"), f"{flag}=--x"):
                assert unknown_flag([spelled, *value], OWN) is None, spelled
    for flags in (["-O3"], ["-O", "2"], ["-n1"], ["-tp", "2"], ["-cc.mode", "3"], ["x", "-0.5"]):
        assert unknown_flag(flags, OWN) is None
    # vLLM 0.33 has the opposite of each flag of this kind.
    for flag in ("--disable-prefix-caching", "--enable-cascade-attn", "--no-enable-lora"):
        assert unknown_flag([flag], OWN) is None
    assert unknown_flag(["--limit-mm-per-prompt.image+", "2", "--max-model-l", "5"], OWN) is None


@pytest.mark.found
def test_a_flag_with_a_typing_error_is_refused_as_by_vllms_parser(parser):
    """Each long flag with a letter doubled: the same decision, and the right one is proposed."""
    proposed = 0
    for flag in sorted(flag for a in parser._actions for flag in a.option_strings if len(flag) > 8):
        wrong = flag[:5] + flag[4] + flag[5:]
        if flag.startswith("--no-"):
            continue
        message = unknown_flag([wrong, "1"], OWN)
        assert message is not None, wrong
        assert message.startswith(f"no such flag: {wrong}")
        with pytest.raises(SystemExit):
            parser.parse_args([wrong, "1"])
        proposed += f"did you mean {flag}?" in message
    assert proposed > 250


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mask_mode", "delta"], "--mask_mode; did you mean --mask-mode?"),
        (["--mask-mem", "5"], "--mask-mem; did you mean --mask-memory-mib?"),
        (["--port", "1", "--max-model-lenn=5"], "--max-model-lenn; did you mean --max-model-len?"),
        (["--zzzzzzzz"], "--zzzzzzzz"),
        (["-tpp", "2"], "-tpp; did you mean -tp?"),
        (["--enable"], "--enable; did you mean --enable-auto-tool-choice or "),
    ],
)
def test_the_proposal(words, said):
    assert (unknown_flag(words, OWN) or "").startswith(f"no such flag: {said}")
    assert unknown_flag(["--", *words], OWN) is None


@pytest.mark.found
@pytest.mark.parametrize(
    "flags",
    [
        ["--max-modle-len", "5"],
        ["--mask-mode", "nope"],
        ["--key-rate", "-1"],
        ["--keep-alive-seconds", "0"],
        ["--registry", "http://x"],
        ["--data-dir", "/proc/none"],
        ["--key-file", "/none/key"],
        ["--key-file", "/"],
        ["--no-auth"],
        ["--no-auth", "--host", "0.0.0.0"],
        ["--no-auth", "--host=::", "--port", "1"],
    ],
)
def test_a_wrong_flag_is_refused_before_vllm_is_loaded(flags):
    done = CliRunner().invoke(app, ["serve", "/none", *flags])
    assert done.exit_code in (1, 2)
    assert flags[0] in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "port: 1\nmax_model_lenn: 5\n",
            "no such flag: --max_model_lenn; did you mean --max-model-len?",
        ),
        ("mask-mode: delta\n", "no such flag: --mask-mode"),
        ("port: 1\nmax-model-len: 5\nno-enable-prefix-caching: true\n", None),
        ("- a\n", None),
        ("a: [\n", None),
    ],
)
def test_keys_of_the_file_of_flags(tmp_path, text, said):
    path = tmp_path / "flags.yaml"
    path.write_text(text)
    found = unknown_key(["--config", str(path), "--port", "2"])
    assert found is None if said is None else found.startswith(f"{path}: {said}")
    assert unknown_key(["--config", str(tmp_path / "none.yaml")]) is None
    assert unknown_key(["--port", "1"]) is None
    if said is not None:
        done = CliRunner().invoke(app, ["serve", "/none", f"--config={path}"])
        assert done.exit_code == 2
        assert "no such flag" in done.output


@pytest.mark.found
def test_a_process_with_a_wrong_flag_ends_at_once():
    """Without vLLM and torch, whose import alone takes longer."""
    start = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "bmt_server", "serve", "m", "--porrt", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "did you mean --port?" in done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"vllm", "torch"} & loaded
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (None, ""),
        ("", ""),
        ("/", ""),
        ("/masks", "/masks"),
        ("masks/", "/masks"),
        ("/a/b/", "/a/b"),
    ],
)
def test_root_paths(text, path):
    assert checked_root_path(text) == path


@pytest.mark.parametrize(
    "text", ["/v1", "/v1/masks", "/health", "/livez/x", "/metrics", "/tokenize", "/a?b", "/a//b"]
)
@pytest.mark.parametrize("more", ["", "/"])
def test_root_paths_that_would_hide_a_route_are_refused(text, more):
    with pytest.raises(UnsupportedFlagError, match="--root-path"):
        checked_root_path(text + more)


@pytest.mark.parametrize("text", ["/../v1", "/a/..", "/%2e", "/a b", "/é", "https://h/masks", "/#"])
def test_root_paths_that_are_no_paths_are_refused(text):
    with pytest.raises(UnsupportedFlagError, match="--root-path"):
        checked_root_path(text)
