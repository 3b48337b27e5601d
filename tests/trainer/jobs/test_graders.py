"""Scores of a job's grader: each kind by hand, a real server's model, code in the sandbox."""

from __future__ import annotations

import json
import re
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from bmt_trainer.errors import ConfigError, RewardError, RolloutError
from bmt_trainer.evaluation.sandbox import programs
from bmt_trainer.jobs.settings import GRADER, REWARD
from bmt_trainer.rewards.find import find
from bmt_trainer.rewards.openai_graders.model_score import read_number

OUTPUT, ANSWER = "{{ sample.output_text }}", "{{ item.answer }}"


def check(operation="eq", **more):
    return {
        **{"type": "string_check", "name": "s", "operation": operation},
        **{"input": OUTPUT, "reference": ANSWER, **more},
    }


def similar(metric):
    return {
        **{"type": "text_similarity", "name": "t", "evaluation_metric": metric},
        **{"input": OUTPUT, "reference": ANSWER},
    }


def code(source):
    return {"type": "python", "name": "p", "source": source}


@pytest.fixture
def reward(tmp_path, monkeypatch):
    """Makes the reward as a training does, by its name in the settings."""
    monkeypatch.chdir(tmp_path)

    def make(grader, **more):
        (tmp_path / GRADER).write_text(json.dumps({"grader": grader, **more}))
        return find(f"{REWARD}?file={GRADER}").rewards[0].function

    return make


def scores(function, *pairs):
    answers = [[{"role": "assistant", "content": said}] for said, _ in pairs]
    return function(completions=answers, item=[json.dumps({"answer": a}) for _, a in pairs])


PAIRS = (("5", "5"), ("It is 5.", "5"), ("<think>5</think>6", "5"), ("ABC", "b"), ("", "5"))


@pytest.mark.parametrize(
    ("operation", "wanted"),
    [
        ("eq", [1, 0, 0, 0, 0]),
        ("ne", [0, 1, 1, 1, 1]),
        ("like", [1, 1, 0, 0, 0]),
        ("ilike", [1, 1, 0, 1, 0]),
    ],
)
def test_strings_are_checked_after_thoughts(reward, operation, wanted):
    assert scores(reward(check(operation)), *PAIRS) == wanted


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [
        ("fuzzy_match", 26 / 38),
        ("bleu", 0.3976),
        ("gleu", 6 / 14),
        ("rouge_1", 0.6),
        ("rouge_2", 0.5),
        ("rouge_3", 1 / 3),
        ("rouge_4", 0.0),
        ("rouge_5", 0.0),
        ("rouge_l", 0.6),
    ],
)
def test_similarity_is_from_0_to_1(reward, metric, wanted):
    function, words = reward(similar(metric)), "the cat sat on mats"
    found = scores(function, (words, words), ("", words), ("", ""), ("qqq", words))
    assert found == pytest.approx([1, 0, 1, 0], abs=0.1)
    assert scores(function, ("the cat sat up high", words)) == pytest.approx([wanted], abs=2e-3)


def test_a_formula_weighs_graders(reward):
    grader = {
        **{"type": "multi", "name": "m", "calculate_output": "0.8 * a + 0.2 * b"},
        "graders": {"a": check(), "b": check("like")},
    }
    assert scores(reward(grader), *PAIRS) == pytest.approx([1, 0.2, 0, 0, 0])
    grader["calculate_output"] = "1 / a + b"
    with pytest.raises(RewardError, match=r"a = 0, b = 1"):
        scores(reward(grader), PAIRS[1])


class Chat(BaseHTTPRequestHandler):
    """A chat endpoint that says the last message back; `status N` is answered so."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = body["messages"][-1]["content"]
        self.server.seen.append((self.headers["authorization"], body))
        status = int(found[1]) if (found := re.match(r"status (\d+)", said)) else 200
        answer = {"choices": [{"message": {"role": "assistant", "content": said}}]}
        data = json.dumps(answer if status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def chat(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    server.seen = []
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("BMT_API_KEY", "bmt_worker")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_of_the_server_scores_within_its_range(reward, chat):
    grader = {
        **{"type": "score_model", "name": "j", "model": "tiny", "range": [0, 10]},
        "input": [{"role": "user", "content": OUTPUT}],
    }
    url = f"http://127.0.0.1:{chat.server_port}"
    function = reward(grader, server=url)
    pairs = [("7", ""), ("99", ""), ('{"result": 2.5}', ""), ("Good.\nScore: 3", ""), ("-1", "")]
    assert scores(function, *pairs) == [7, 10, 2.5, 3, 0]
    key, body = chat.seen[0]
    assert (key, body["model"], body["temperature"]) == ("Bearer bmt_worker", "tiny", 0.0)
    assert body["max_tokens"] == 64
    for said, why in (("fine", "is no number"), ("status 403", "answered 403"), ("nan", "no num")):
        with pytest.raises(RewardError, match=why):
            scores(function, ("1", ""), (said, ""))
    # What the server may have later on fails no job: another worker tries it again.
    with pytest.raises(RolloutError, match="answered 503"):
        scores(function, ("status 503", ""))
    with pytest.raises(RolloutError, match="did not answer"):
        scores(reward(grader, server="http://127.0.0.1:1"), ("1", ""))
    with pytest.raises(ConfigError, match="none is set"):
        scores(reward(grader), ("1", ""))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("**8**", 8),
        ("1e400", None),
        ("8/10", None),
        ("a 7 b", None),
        ("-.5", -0.5),
        ("", None),
        ("score: -2", -2),
    ],
)
def test_a_reply_is_a_number_or_nothing(text, number):
    assert read_number(text) == number


def test_code_is_refused_where_the_operator_does_not_allow_it(reward):
    with pytest.raises(ConfigError, match="--run-grader-code"):
        reward(code("def grade(sample, item): return 1"))


def test_code_is_refused_where_nothing_isolates_it(reward, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="grader python: code is not run"):
        reward(code("def grade(sample, item): return 1"), run_code=True)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="the sandbox needs unshare")
def test_code_scores_in_the_sandbox(reward):
    try:
        programs.check()
    except ConfigError as error:
        pytest.skip(str(error))
    source = (
        "def grade(sample, item):\n"
        "    said = sample['choices'][0]['message']['content']\n"
        "    return (sample['output_text'] == item['answer']) / 2 + (said == '5')"
    )
    assert scores(reward(code(source), run_code=True), *PAIRS[:2]) == [1.5, 0]
    for body in (
        "return float('nan')",
        "return 'x'",
        "raise ValueError",
        "import os; os._exit(0)",
        "open('/etc/passwd', 'w')",
        "import socket; socket.socket()",
        "while True: pass",
    ):
        function = reward(code(f"def grade(sample, item):\n    {body}"), run_code=True)
        with pytest.raises(RewardError, match="without a finite number"):
            scores(function, PAIRS[0])
