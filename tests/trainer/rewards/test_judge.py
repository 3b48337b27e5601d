"""A judge on a server as a reward, against a server that plays one."""

from __future__ import annotations

import threading
import time

import pytest
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.errors import ConfigError, RewardError
from bmt_trainer.rewards.find import find
from bmt_trainer.rewards.judge import read_number

from tests.support.http.fake_server import KEY, FakeServer, Fault, serving
from tests.support.tiny_model import byte_tokenizer

ROWS = [Example(chat(f"{n} + {n}?"), str(2 * n)) for n in range(4)]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("BMT_API_KEY", KEY)
    with serving(FakeServer()) as fake:
        fake.asked = []
        fake.reply = lambda body: "10"
        yield fake


def judged(server, completions=("0", "3"), options="", url=None):
    text = f"judge:{url or server.url}?model=base{options}"
    rewards = find(text).for_model(byte_tokenizer(), 8)
    return list(rewards.marks(completions, ROWS[: len(completions)]).strict)


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("7", 7),
        (" 7.5 \n", 7.5),
        ("**8**", 8),
        ("9/10", 9),
        ("10.", 10),
        ("0", 0),
        ("The sum is 4, which is right.\nScore: 9", 9),
        ("Score: 2\nOn reflection:\n**Rating:** 3/10", 3),
        ("grade = 6", 6),
        ("", None),
        ("eleven", None),
        ("11", None),
        ("-1", None),
        ("7 or 8", None),
        ("I would say 7, for 2 reasons", None),
        ("nan", None),
    ],
)
def test_numbers_of_replies(reply, number):
    assert read_number(reply) == number


@pytest.mark.found
def test_a_judge_sees_prompt_and_completion_and_gives_a_tenth_of_its_number(server):
    bodies = []

    def reply(body):
        bodies.append(body)
        return "10" if "Answer:\n0\n" in body["messages"][-1]["content"] else "Score: 2.5"

    server.reply = reply
    assert judged(server) == [1.0, 0.25]
    texts = [body["messages"][0]["content"] for body in bodies]
    assert all(f"Request:\n{n} + {n}?" in "".join(texts) for n in (0, 1))
    for body in bodies:
        assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0, 16, 1)
        assert not body.get("stream")
    assert judged(server, url=f"{server.url}/v1") == [1.0, 0.25]
    assert judged(server, options="&weight=-2") == [-2.0, -0.5]


def test_an_instruction_of_a_file_is_filled_in_once(server, tmp_path):
    bodies = []
    server.reply = lambda body: bodies.append(body) or "5"
    path = tmp_path / "rubric.txt"
    path.write_text("Q {prompt} A {completion} R {answer} {other} {}")
    assert judged(server, ["{answer} {prompt}"], f"&prompt={path}") == [0.5]
    assert bodies[0]["messages"][0]["content"] == "Q 0 + 0? A {answer} {prompt} R 0 {other} {}"
    path.write_text("Grade it.")
    with pytest.raises(ConfigError, match=r"must contain \{completion\}"):
        judged(server, options=f"&prompt={path}")
    with pytest.raises(ConfigError, match="cannot be read"):
        judged(server, options=f"&prompt={tmp_path}/absent.txt")


def test_requests_run_together_and_keep_their_order(server):
    inside, together, lock = [0], [0], threading.Lock()

    def reply(body):
        with lock:
            inside[0] += 1
            together[0] = max(together[0], inside[0])
        number = int(body["messages"][0]["content"].split("Answer:\n")[1].split("\n")[0])
        time.sleep(0.05 * (4 - number))
        with lock:
            inside[0] -= 1
        return str(number)

    server.reply = reply
    assert judged(server, ["0", "1", "2", "3"]) == [0, 0.1, 0.2, 0.3]
    assert together[0] > 1


@pytest.mark.found
def test_a_reply_without_a_number_is_an_error_or_does_not_apply(server):
    server.reply = lambda body: "I cannot grade that."
    with pytest.raises(RewardError, match="replied 'I cannot grade that") as raised:
        judged(server)
    assert server.url in str(raised.value)
    assert judged(server, options="&unread=none") == [None, None]


@pytest.mark.found
def test_a_server_that_fails_or_is_away_is_an_error_of_one_line_in_bounded_time(server):
    server.faults = [Fault(status=500), Fault(drop=True)]
    assert judged(server, ["0"], "&retries=2") == [1.0]  # it is asked again
    server.faults = [Fault(status=500)] * 9
    with pytest.raises(RewardError, match="did not answer"):
        judged(server, ["0"], "&retries=0")
    server.faults = []
    server.key = "another"
    with pytest.raises(RewardError, match="401"):
        judged(server, ["0"])
    server.key = KEY
    server.reply = lambda body: time.sleep(1) or "3"
    start = time.monotonic()
    with pytest.raises(RewardError, match="Timeout"):
        judged(server, ["0"], "&timeout=0.2&retries=0")
    assert time.monotonic() - start < 1
    with pytest.raises(ConfigError, match=r"judge:http://127\.0\.0\.1:9.*did not answer") as raised:
        find("judge:http://127.0.0.1:9?model=base&retries=0").for_model(byte_tokenizer()).try_on(
            ROWS, print
        )
    assert "\n" not in str(raised.value)


def test_the_key_is_of_the_variable_that_is_named(server, monkeypatch):
    monkeypatch.delenv("BMT_API_KEY")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    assert judged(server, ["0"], "&key=JUDGE_KEY") == [1.0]
    with pytest.raises(RewardError, match="401"):
        judged(server, ["0"])
