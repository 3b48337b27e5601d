"""Evaluation on a server: its base and names are compared, and prompts are sent as token ids."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import bmt_core
import pytest
import torch
from bmt_trainer.cli.main import app
from bmt_trainer.data.encoding import render
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.errors import ConfigError, DataError, LibraryError, NonFinite, RolloutError
from bmt_trainer.evaluation.backends import by_options
from bmt_trainer.evaluation.suites import Suite, run
from bmt_trainer.models import load_tokenizer
from typer.testing import CliRunner


class Served(BaseHTTPRequestHandler):
    """A server of a base and a mask that repeats the last characters of a prompt of token ids."""

    models: dict = {}  # noqa: RUF012
    me: dict | None = None
    requests: list = []  # noqa: RUF012
    failing: set = set()  # noqa: RUF012
    masks = True
    reason = "stop"

    def _send(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/v1/models" and Served.models is not None:
            listed = [{"id": name, "max_model_len": n} for name, n in Served.models.items()]
            self._send(200, {"object": "list", "data": listed})
        elif self.path == "/v1/me" and Served.me is not None:
            self._send(200, Served.me)
        elif self.path.startswith("/v1/masks") and Served.masks:
            self._send(200, {"data": [], "next": None})
        else:
            self._send(404, {"error": {"message": "no", "code": "not_found"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Served.requests.append((self.path, body))
        if len(Served.requests) in Served.failing:
            self._send(400, {"error": {"message": "it broke"}})
            return
        if self.path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": "so #### 3 maybe"}
            choice = {"index": 0, "message": message, "finish_reason": Served.reason}
            self._send(200, {"id": "1", "object": "chat.completion", "created": 0,
                             "choices": [choice], "model": body["model"]})  # fmt: skip
            return
        ids = body["prompt"][-3:]
        choice = {"index": 0, "text": "", "finish_reason": "stop", "token_ids": ids}
        self._send(200, {"id": "1", "object": "text_completion", "created": 0, "choices": [choice],
                         "model": body["model"]})  # fmt: skip

    def log_message(self, *_):
        pass


@pytest.fixture
def url(checkpoint, monkeypatch):
    monkeypatch.setenv("BMT_API_KEY", "bmt_test")
    monkeypatch.setattr(Served, "models", {"smol": 400, "reverse": 400})
    base = {"names": ["smol"], "fingerprint": bmt_core.fingerprint(checkpoint)}
    monkeypatch.setattr(
        Served, "me", {"key_id": "k", "tenant": "t", "scopes": ["infer"], "base": base}
    )
    monkeypatch.setattr(Served, "failing", set())
    monkeypatch.setattr(Served, "reason", "stop")
    Served.requests.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def models(url, checkpoint, **changes):
    given = {"engine": "auto", "server": url, "base_name": None, "mask_name": None}
    return by_options(
        str(checkpoint), None, **{**given, "batch_size": 4, "device": "auto", **changes}
    )


EXAMPLES = [Example(chat(text), text) for text in ("abc", "defg")]


@pytest.mark.found
def test_prompts_are_token_ids_as_they_are_rendered_here(url, checkpoint, tmp_path):
    tokenizer = load_tokenizer(checkpoint)
    models(url, checkpoint, mask_name="reverse")["mask"](EXAMPLES, 5)
    assert {path for path, _ in Served.requests} == {"/v1/completions"}
    sent = sorted((body["model"], body["prompt"]) for _, body in Served.requests)
    assert sent == sorted(("reverse", render(tokenizer, example)) for example in EXAMPLES)
    Served.requests.clear()
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    models(url, checkpoint, chat_template=str(template))["base"](EXAMPLES[:1], 5)
    assert tokenizer.decode(Served.requests[0][1]["prompt"]) == "<abc>"


@pytest.mark.found
def test_a_server_of_another_base_is_refused(url, checkpoint, monkeypatch):
    Served.me["base"]["fingerprint"] = "0" * 64
    with pytest.raises(RolloutError, match=r"another base.*000000000000"):
        models(url, checkpoint, base_name="smol")
    arguments = ["eval", "--model", str(checkpoint), "--dataset", "task:initials"]
    done = CliRunner().invoke(app, [*arguments, "--base-name", "smol", "--server", url])
    assert isinstance(done.exception, RolloutError)
    assert not Served.requests


@pytest.mark.found
def test_names_are_compared_before_anything_is_generated(url, checkpoint):
    with pytest.raises(RolloutError, match="no model revers; it has reverse, smol"):
        models(url, checkpoint, mask_name="revers")
    with pytest.raises(RolloutError, match="no model smoll; it has reverse, smol"):
        models(url, checkpoint, base_name="smoll")
    models(url, checkpoint, mask_name="reverse@1234")
    # The base's weights are known, so that its name is found.
    models(url, checkpoint)["base"](EXAMPLES[:1], 5)
    assert Served.requests[0][1]["model"] == "smol"


def test_a_server_that_does_not_state_its_base_is_said(url, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(Served, "me", None)
    models(url, checkpoint, base_name="smol")
    assert "does not state its base" in capsys.readouterr().err
    with pytest.raises(RolloutError, match=r"Connection|connect"):
        models("http://127.0.0.1:9", checkpoint)
    with pytest.raises(ConfigError, match="server"):
        models("127.0.0.1", checkpoint)
    with pytest.raises(ConfigError, match="not on this machine"):
        models(url, "org/not-here", chat_template="tools")


@pytest.mark.found
def test_names_and_context_of_a_server_that_lists_models_alone(
    url, checkpoint, monkeypatch, capsys
):
    """As vLLM's own server, which has neither /v1/me nor /v1/masks."""
    monkeypatch.setattr(Served, "me", None)
    monkeypatch.setattr(Served, "masks", False)
    with pytest.raises(RolloutError, match="no model revers; it has reverse, smol"):
        models(url, checkpoint, base_name="smol", mask_name="revers")
    assert not Served.requests
    Served.models["smol"] = 60
    models(url, checkpoint, base_name="smol")["base"](EXAMPLES, 4096)
    longest = max(len(render(load_tokenizer(checkpoint), e)) for e in EXAMPLES)
    assert {body["max_tokens"] for _, body in Served.requests} == {60 - longest}
    assert "does not state its base" in capsys.readouterr().err
    monkeypatch.setattr(Served, "models", None)  # not even a list
    models(url, checkpoint, mask_name="any")
    assert "states neither its base nor its models (404)" in capsys.readouterr().err


@pytest.mark.found
@pytest.mark.parametrize(("reason", "warned"), [("length", True), ("stop", False)])
def test_cut_answers_of_a_base_that_is_not_here_are_warned_of(url, capsys, reason, warned):
    Served.reason = reason
    made = models(url, "org/not-here", base_name="smol")["base"]
    [done, _] = made(EXAMPLES, 5)
    assert done.cut == warned
    said = capsys.readouterr().err
    assert ("2 of 2 answers were cut at max_new_tokens" in said) == warned


@pytest.mark.found
def test_answers_end_within_the_servers_context(url, checkpoint, capsys):
    Served.models["smol"] = 60
    models(url, checkpoint)["base"](EXAMPLES, 4096)
    longest = max(len(render(load_tokenizer(checkpoint), e)) for e in EXAMPLES)
    assert {body["max_tokens"] for _, body in Served.requests} == {60 - longest}
    assert "answers end after" in capsys.readouterr().err
    Served.models["smol"] = 10
    with pytest.raises(DataError, match="no room"):
        models(url, checkpoint)["base"](EXAMPLES, 4)


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def sets(tmp_path):
    lines(tmp_path / "gsm8k" / "test.jsonl", [{"question": "1?", "answer": "#### 1"}] * 1)
    rows = [{"question": "q", "options": ["a", "b"], "answer": "A", "category": "law"}]
    lines(tmp_path / "mmlu_pro" / "test.jsonl", rows)
    return tmp_path


@pytest.mark.found
@pytest.mark.parametrize("failing", [1, 2])
def test_finished_sets_are_kept_when_one_fails(url, checkpoint, sets, failing):
    Served.failing.add(failing)
    arguments = ["suites", "--model", str(checkpoint), "--data", str(sets), "--server", url]
    done = CliRunner().invoke(app, [*arguments, "--tasks", "gsm8k,mmlu-pro law,gsm8k", "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout.splitlines()[-1])
    assert [one["suite"] for one in found] == ["gsm8k", "mmlu-pro law"]
    assert ["scores" in one for one in found] == [failing != 1, failing != 2]
    assert "it broke" in found[failing - 1]["skipped"]
    assert "1 of 2 sets have no score" in done.stderr


@pytest.mark.found
@pytest.mark.parametrize(
    "error",
    [
        NonFinite("logits of prompt 3 are not finite"),
        LibraryError("transformers lacks a part"),
        torch.OutOfMemoryError("CUDA out of memory."),
        ZeroDivisionError("a fault of ours"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_any_kind_in_a_set_keeps_the_others(checkpoint, sets, monkeypatch, error):
    def answers(examples, tokens):
        if tokens == 32:  # mmlu-pro's
            raise error
        return ["#### 1"] * len(examples)

    monkeypatch.setattr(
        "bmt_trainer.evaluation.backends.by_options", lambda *_, **__: {"base": answers}
    )
    arguments = ["suites", "--model", str(checkpoint), "--data", str(sets), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--tasks", "mmlu-pro law,gsm8k"])
    assert done.exit_code == 1
    failed, scored = json.loads(done.stdout.splitlines()[-1])
    assert str(error) in failed["skipped"]
    assert scored["scores"]["base"]["exact"] == 1
    assert "mmlu-pro law: failed" in done.stderr
    assert "1 of 2 sets have no score" in done.stderr


@pytest.mark.found
def test_nothing_scored_is_a_failure(checkpoint, tmp_path):
    arguments = ["suites", "--model", str(checkpoint), "--data", str(tmp_path), "--engine"]
    done = CliRunner().invoke(app, [*arguments, "transformers", "--tasks", "toolalpaca", "--json"])
    assert done.exit_code == 1
    assert "skipped" in json.loads(done.stdout.splitlines()[-1])[0]


def test_a_prompt_without_room_skips_its_set(sets):
    def no_room(examples, tokens):
        raise DataError("no room for an answer")

    gsm8k = Suite("gsm8k", "gsm8k", "gsm8k/test.jsonl", "gsm8k", 4)
    [found] = run([gsm8k], {"base": no_room}, folder=sets)
    assert (found.skipped, found.failed) == ("no room for an answer", False)
