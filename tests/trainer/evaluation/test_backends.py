"""Backends: choice by options, and a server's greedy answers, their order and errors."""

from __future__ import annotations

import importlib.metadata
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import bmt_core
import pytest
from bmt_server.evaluation_engine import GreedyEngine
from bmt_trainer.cli.main import app
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.errors import ConfigError, RolloutError
from bmt_trainer.evaluation import backends
from bmt_trainer.evaluation.backends import ENGINES, by_options, by_vllm
from bmt_trainer.evaluation.completions import CompletionReader
from bmt_trainer.evaluation.generate import generate
from bmt_trainer.evaluation.server_backend import by_server
from bmt_trainer.models import load_model, load_tokenizer
from typer.testing import CliRunner

from tests.support.tiny_model import TEMPLATE, byte_tokenizer


class Echo(BaseHTTPRequestHandler):
    """Server that answers with the model's name and the last turn, or with a call of a function."""

    requests: list = []  # noqa: RUF012
    #: Fields of the message, of the choice, instead of the echo.
    message: dict = {}  # noqa: RUF012
    choice: dict = {}  # noqa: RUF012

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Echo.requests.append(body)
        known = body["model"] in ("smol", "reverse")
        asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        text = f"{body['model']} {asked}"
        message = {"role": "assistant", "content": text}
        if body.get("tools"):
            function = {**body["tools"][0]["function"], "arguments": '{"p": 1}'}
            call = {"id": "c", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        message = {**message, **Echo.message}
        choice = {"index": 0, "message": message, "text": text, "finish_reason": "stop"}
        choice |= Echo.choice
        found = {"id": "1", "object": "chat.completion", "created": 0, "choices": [choice]}
        answer = {**found, "model": body["model"]} if known else {"error": {"message": "unknown"}}
        data = json.dumps(answer).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setenv("BMT_API_KEY", "bmt_test")
    monkeypatch.setattr(Echo, "message", {})
    monkeypatch.setattr(Echo, "choice", {})
    Echo.requests.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_answers_keep_the_prompts_order(url):
    models = by_server(url, {"base": "smol", "mask": "reverse"}, concurrency=4)
    examples = [Example(chat(str(n)), "") for n in range(9)]
    assert models["mask"](examples, 7) == [f"reverse {n}" for n in range(9)]
    assert models["base"](examples[:1], 7) == ["smol 0"]
    assert all(body["temperature"] == 0 and body["max_tokens"] == 7 for body in Echo.requests)
    assert all(body["repetition_penalty"] == 1 for body in Echo.requests)


def test_functions_calls_and_raw_text_reach_the_server(url):
    answer = by_server(url, {"base": "smol"}, concurrency=2)["base"]
    tools = ({"type": "function", "function": {"name": "f"}},)
    call = {"function": {"name": "f", "arguments": {"p": 1}}}
    turns = (*chat("q"), {"role": "assistant", "content": "", "tool_calls": [call]}, *chat("r"))
    [text] = answer([Example(turns, "", tools=tools)], 7)
    assert text == '<tool_call>\n{"name": "f", "arguments": {"p": 1}}\n</tool_call>'
    [body] = Echo.requests
    assert body["tools"] == list(tools)
    [sent] = body["messages"][1]["tool_calls"]
    assert json.loads(sent["function"]["arguments"]) == {"p": 1}
    assert answer([Example("as it is ", "")], 7) == ["smol as it is "]
    assert Echo.requests[-1]["prompt"] == "as it is "


@pytest.mark.found
@pytest.mark.parametrize(
    ("message", "tokens", "graded"),
    [
        # A server with a parser of thoughts, by vLLM's name of the field and by others'.
        ({"content": "3", "reasoning": "It is 4."}, None, "3"),
        ({"content": "3", "reasoning_content": "It is 4."}, None, "3"),
        ({"content": None, "reasoning": "so 3"}, None, None),
        ({"content": "", "reasoning_content": "so 3"}, None, None),
        # A server without one.
        ({"content": "<think>It is 4.</think>3"}, None, "3"),
        ({"content": "<think>so 3"}, None, None),
        # The tokens of the answer, from either.
        ({"content": "3", "reasoning": "It is 4."}, "It is 4.</think>3", "3"),
        ({"content": None, "reasoning": "so 3"}, "so 3", None),
        # Tokens of another model.
        ({"content": "<think>a</think>3"}, "zzz", "3"),
    ],
)
def test_a_server_with_and_without_a_parser_of_thoughts(url, monkeypatch, message, tokens, graded):
    tokenizer = byte_tokenizer()
    opened = tokens is not None and not tokens.startswith("z")
    if opened:
        tokenizer.chat_template = TEMPLATE.replace("assistant\n{%", "assistant\n<think>\n{%")
    monkeypatch.setattr(Echo, "message", message)
    ids = tokens and tokenizer(tokens, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(Echo, "choice", {"finish_reason": "length", "token_ids": ids})
    reader = CompletionReader(tokenizer)
    answer = by_server(url, {"base": "smol"}, concurrency=1, reader=reader)["base"]
    [made] = answer([Example(chat("1 + 2?"), "3")], 7)
    assert made.graded("3")[0] == graded
    assert made.cut
    assert ("4" in made) == (graded is not None and "4" in str((message, tokens)))
    monkeypatch.setattr(Echo, "choice", {})
    assert not answer([Example(chat("1 + 2?"), "3")], 7)[0].cut
    assert Echo.requests[-1]["return_token_ids"]


@pytest.mark.found
def test_eval_counts_cut_answers_and_thoughts(url, monkeypatch):
    monkeypatch.setattr(Echo, "message", {"content": None, "reasoning": "Number"})
    monkeypatch.setattr(Echo, "choice", {"finish_reason": "length"})
    wanted = ["eval", "--model", "smol", "--dataset", "task:initials", "--heldout", "5"]
    done = CliRunner().invoke(app, [*wanted, "--server", url])
    assert "n = 5, cut: 5, unfinished thoughts: 5" in " ".join(done.stdout.split())
    done = CliRunner().invoke(app, [*wanted, "--server", url, "--json", "--thoughts", "off"])
    score = json.loads(done.stdout.splitlines()[-1])
    assert (score["cut"], score["unfinished_thoughts"]) == (5, 0)


def test_a_failed_request_raises_a_rollout_error(url):
    models = by_server(url, {"base": "nobody"}, concurrency=2)
    with pytest.raises(RolloutError, match="nobody"):
        models["base"]([({"role": "user", "content": "?"},)], 7)


def test_eval_of_a_served_mask(url):
    """The command reads no model: the server answers, under the names that it serves."""
    wanted = ["eval", "--model", "smol", "--dataset", "task:initials", "--heldout", "5", "--json"]
    for more, name in ([], "smol"), (["--mask-name", "reverse"], "reverse"):
        Echo.requests.clear()
        done = CliRunner().invoke(app, [*wanted, "--server", url, *more])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout.splitlines()[-1])["total"] == 5
        assert [body["model"] for body in Echo.requests] == [name] * 5


OPTIONS = {
    **{"engine": "auto", "server": None, "base_name": None, "mask_name": None},
    **{"batch_size": 4, "device": "auto"},
}


@pytest.mark.parametrize(
    ("change", "installed", "chosen"),
    [
        ({}, True, "by_vllm"),
        ({}, False, "by_transformers"),
        ({"device": "cpu"}, True, "by_transformers"),
        ({"engine": "transformers"}, True, "by_transformers"),
        ({"engine": "vllm"}, False, "by_vllm"),
        ({"server": "http://there"}, True, "by_server"),
    ],
)
def test_options_choose_the_backend(monkeypatch, change, installed, chosen):
    for name in ("by_vllm", "by_transformers", "by_server"):
        monkeypatch.setattr(backends, name, lambda *_, name=name, **__: name)
    monkeypatch.setattr(backends, "has_vllm", lambda: installed)
    assert by_options("m", None, **{**OPTIONS, **change}) == chosen


def test_server_names_and_mask_files_are_not_combined(tmp_path):
    for change in {"base_name": "smol"}, {"mask_name": "reverse"}:
        with pytest.raises(ConfigError, match="--server"):
            by_options("m", None, **{**OPTIONS, **change})
    for change in {}, {"mask_name": "reverse"}:
        with pytest.raises(ConfigError, match="name it by --mask-name"):
            by_options("m", tmp_path / "m.bmt", **{**OPTIONS, "server": "http://there", **change})


def test_the_server_registers_the_vllm_engine():
    [registered] = importlib.metadata.entry_points(group=ENGINES, name="vllm")
    assert registered.load() is GreedyEngine


class Spelling:
    """Engine that answers every prompt with its last token, thrice, and keeps its arguments."""

    def __init__(self, model, *, max_num_seqs):
        self.made, self.calls = (model, max_num_seqs), []
        Spelling.last = self

    def generate(self, prompts, max_tokens, mask=None):
        self.calls.append((max_tokens, mask and mask.digest))
        return [[ids[-1]] * 3 for ids in prompts]


def test_the_vllm_backend_passes_token_ids_and_masks(checkpoint, tmp_path, monkeypatch):
    class Registered:
        def load(self):
            return Spelling

    base = bmt_core.Base("tiny", bmt_core.fingerprint(checkpoint))
    mask = bmt_core.Mask(base, (), {})
    bmt_core.save(mask, tmp_path / "m.bmt")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [Registered()])
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: name)
    models = by_vllm(str(checkpoint), tmp_path / "m.bmt", batch_size=8)
    examples = [Example(chat(text), "") for text in ("a", "b")]
    last = load_tokenizer(checkpoint).decode(
        [backends.render(load_tokenizer(checkpoint), e)[-1] for e in examples]
    )
    assert "".join(models["base"](examples, 5)) == "".join(c * 3 for c in last)
    models["mask"](examples, 7)
    assert Spelling.last.made == (str(checkpoint), 8)
    assert Spelling.last.calls == [(5, None), (7, mask.digest)]
    assert [a.cut for n in (3, 5) for a in models["base"](examples[:1], n)] == [True, False]


def test_transformers_counts_the_answers_that_its_limit_ends(checkpoint):
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    examples = [Example(chat(text), "") for text in ("a", "bc", "def", "ghij")]
    prompts = [backends.render(tokenizer, example) for example in examples]
    head = model.get_output_embeddings()

    def end_of_longer_prompts(module, inputs, logits):
        # The greedy choice is the end of a text for prompts of an even number of characters.
        logits[..., tokenizer.eos_token_id] = -1e9
        for row in range(len(logits)):
            if lengths[row] % 2:
                logits[row, -1, tokenizer.eos_token_id] = 1e9

    hook = head.register_forward_hook(end_of_longer_prompts)
    lengths = [0, 1, 0, 1]
    assert [len(ids) for ids in prompts] == sorted(len(ids) for ids in prompts)
    made = generate(model, tokenizer, examples, max_new_tokens=3, batch_size=4)
    hook.remove()
    assert [one.cut for one in made] == [True, False, True, False]
