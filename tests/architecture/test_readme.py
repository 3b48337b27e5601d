"""The README's commands, run as they stand on a real server; only the port differs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import bmt_core
import pytest

from tests.support.masks import random_mask_of

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str, holding: str) -> str:
    """The README's one code block of `language` that holds the words."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [b for b in blocks if holding in b]
    return found


@pytest.fixture(scope="module")
def run(server, smol, tmp_path_factory):
    """Runs text with `command` in a folder that has the mask; returns what it prints."""
    folder = tmp_path_factory.mktemp("cwd")
    bmt_core.save(random_mask_of(smol, 0), folder / "reverse.bmt")
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "BMT_API_KEY": server.key, "BMT_URL": server.url}

    def one(text: str, *command: str) -> str:
        done = subprocess.run(
            [*command],
            input=text.replace("http://127.0.0.1:8000", server.url),
            cwd=folder,
            env={**environment, "PATH": programs},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    return one


def test_the_quick_starts_client_lines(run):
    lines = block("bash", "bmt-client upload").splitlines()
    text = "\n".join(line for line in lines if line.startswith("bmt-client"))
    assert text.count("\n") == 1
    assert "reverse@" in run(text, "bash", "-e")


def test_the_curl_lines(run, smol):
    run("bmt-client upload reverse.bmt", "bash", "-e")
    digest = random_mask_of(smol, 0).digest[:12]
    # -f: an HTTP error fails the command, and with it the test.
    text = block("bash", "curl -s http").replace("curl -s ", "curl -sSf ")
    out = run(text, "bash", "-e")
    answer, end = json.JSONDecoder().raw_decode(out)
    assert answer["model"] == f"reverse@{digest}"
    assert answer["choices"][0]["message"]["content"]
    models, length = json.JSONDecoder().raw_decode(out[end:])
    assert {"smol", "reverse"} <= {m["id"] for m in models["data"]}
    assert "vllm:generation_tokens_total" in out[end + length :]


def test_the_python_lines(run):
    out = run(block("python", "BmtClient") + "\nprint(chat.model)", sys.executable, "-")
    assert out.strip().splitlines()[-1].startswith("reverse@")


@pytest.mark.slow
def test_the_offline_lines(run, smol):
    lines = block("python", "masked_llm").replace("path/to/model", str(smol))
    lines = lines.replace("max_model_len", "enforce_eager=True, max_model_len")  # a minute less
    # vLLM starts its engine with `spawn`, which wants a guarded main.
    guarded = "if __name__ == '__main__':\n" + "\n".join(f"    {x}" for x in lines.splitlines())
    code = f"import pathlib\npathlib.Path('offline.py').write_text({guarded!r})"
    run(code, sys.executable, "-")
    run("", sys.executable, "offline.py")
