"""Requests of rollouts and their answers. Answers by mask: tests/server/serving/test_serve.py."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from bmt_client import KeyInfo, PermissionDenied
from bmt_trainer.errors import RolloutError
from bmt_trainer.methods.rollouts import steps
from bmt_trainer.methods.rollouts.server import ServerRollouts, _read
from bmt_trainer.methods.rollouts.steps import StepRollouts
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from tests.support.masks import make_mask


def sent_with(**settings):
    """The fields of the request that rollouts send."""
    server = SimpleNamespace(
        registry=None,
        limits=KeyInfo(scopes=frozenset()),
        generation=lambda: None,
    )
    rollouts = ServerRollouts(server, "m", max_tokens=3, temperature=0.7, **settings)
    return rollouts.request("m@1", [5, 6], 1, seed=0)


def test_requests_override_the_checkpoints_sampling_settings():
    """Llama-3.2-Instruct recommends top_p 0.9, whose samples are not the policy's."""
    sent = sent_with()
    recommended = {"repetition_penalty": 1.1, "presence_penalty": 1.5, "frequency_penalty": 0.5}
    recommended |= {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1}
    taken = CompletionRequest(**sent).to_sampling_params(3, recommended)
    assert (taken.temperature, taken.top_p, taken.top_k, taken.min_p) == (0.7, 1.0, 0, 0.0)
    assert taken.repetition_penalty == 1.0
    assert not taken.stop_token_ids
    assert taken.presence_penalty == taken.frequency_penalty == 0.0


def test_requests_have_the_runs_own_truncation():
    sent = sent_with(sampling={"top_p": 0.8, "top_k": 5, "min_p": 0.05, "stop_token_ids": [2, 7]})
    taken = CompletionRequest(**sent).to_sampling_params(3, {"top_p": 0.9, "top_k": 20})
    assert (taken.temperature, taken.top_p, taken.top_k, taken.min_p) == (0.7, 0.8, 5, 0.05)
    assert taken.repetition_penalty == 1.0
    # The template's end of a turn, which the checkpoint may not know.
    assert taken.stop_token_ids == [2, 7]


def answering(change):
    """The completions read of an answer to two of a prompt, after a change of its choices."""
    asked = {"model": "m@1", "n": 2}
    choices = [
        {
            "index": at,
            "token_ids": [at, 7],
            "logprobs": {"token_logprobs": [-1.0, -2.0]},
            "finish_reason": "stop",
        }
        for at in (1, 0)
    ]
    change(choices)
    return _read({"model": "m@1", "choices": choices}, asked)


def test_completions_are_read_in_the_order_of_their_numbers():
    assert [tokens for tokens, _ in answering(lambda choices: None)] == [[0, 7], [1, 7]]


@pytest.mark.parametrize(
    "change",
    [
        lambda choices: choices.pop(),
        lambda choices: choices[0].pop("token_ids"),
        lambda choices: choices[0].update(token_ids=None),
        lambda choices: choices[0].update(logprobs=None),
        lambda choices: choices[0]["token_ids"].pop(),
    ],
    ids=["fewer", "no ids", "null ids", "no log-probabilities", "other lengths"],
)
def test_an_answer_to_something_else_is_a_typed_error(change):
    """A group that lacks a completion would give its rewards to the next group's prompt."""
    with pytest.raises(RolloutError, match="m@1"):
        answering(change)


def test_rows_of_equal_prompts_ask_for_no_more_than_a_request_may():
    asked = sampled([max_of(4)], [[1]] * 6 + [[2]] * 3)[0].asked
    assert [(one["prompt"], one["n"]) for one in asked] == [([1], 4), ([1], 2), ([2], 3)]
    assert_own_seeds(asked)


class Stub:
    """A server of rollouts that answers with its name and the seed of each completion.

    vLLM samples completion i of a request with its seed + i.
    """

    push_seconds = push_bytes = flips = 0

    def __init__(self, name, most=None):
        self.model, self.most, self.asked, self.events = name, most, [], []

    def push(self, mask):
        self.events.append("push")

    def follow(self, mask):
        self.events.append("follow")

    def request(self, model, ids, count, seed):
        return {"model": model, "prompt": ids, "n": count, "seed": seed}

    def answers(self, asked):
        self.events.append("answers")
        self.asked += asked
        return [[([one["seed"] + i], [0.0]) for i in range(one["n"])] for one in asked]


def max_of(most):
    return Stub("m@1", most)


def sampled(servers, prompts, step=2):
    """(the first server, token ids) of a first turn."""
    trainer = SimpleNamespace(
        state=SimpleNamespace(global_step=step), _log_metric=lambda name, value: None
    )
    rollouts = StepRollouts(servers, lambda: "mask")
    return servers[0], rollouts.turn(prompts, trainer, first=True)[0]


def assert_own_seeds(asked):
    """No two completions have one seed: those of one prompt would be equal."""
    seeds = [one["seed"] + i for one in asked for i in range(one["n"])]
    assert len(set(seeds)) == len(seeds)


def test_several_servers_share_a_step_and_all_have_its_mask_first():
    prompts = [[p] for p in range(6) for _ in range(2)]
    servers = [Stub("a@1"), Stub("b@1"), Stub("c@1")]
    found = sampled(servers, prompts)[1]
    assert found == sampled([Stub("a@1")], prompts)[1], "another server, another sample"
    assert [len(one.asked) for one in servers] == [2, 2, 2]
    assert all(one.events == ["push", "answers"] for one in servers)
    assert all(ask["model"] == one.model for one in servers for ask in one.asked)
    assert_own_seeds([ask for one in servers for ask in one.asked])


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("urls", [1, 2])
def test_processes_sample_what_a_single_one_does(monkeypatch, processes, urls):
    """Three prompts of four completions in two processes: the second prompt is of both."""
    prompts = [[p] for p in range(3) for _ in range(4)]
    whole = sampled([Stub("a@1")], prompts)[1]
    share = len(prompts) // processes
    found, asked = [], []
    monkeypatch.setattr(steps, "world_size", lambda: processes)
    monkeypatch.setattr(steps, "of_all_processes", lambda value: [value] * processes)
    for rank in range(processes):
        monkeypatch.setattr(steps, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(steps, "is_main_process", lambda rank=rank: rank == 0)
        servers = [Stub(f"{n}@1") for n in range(urls)]
        found += sampled(servers, prompts[rank * share : (rank + 1) * share])[1]
        asked += [ask for one in servers for ask in one.asked]
        assert all(one.events[0] == ("follow" if rank else "push") for one in servers)
    assert found == whole
    assert_own_seeds(asked)


def test_the_server_that_fails_ends_the_step_though_another_hangs():
    held = threading.Event()

    class Hangs(Stub):
        def answers(self, asked):
            held.wait(30)

    class Fails(Stub):
        def answers(self, asked):
            raise RolloutError("server http://b: gone")

    try:
        with pytest.raises(RolloutError, match="http://b"):
            sampled([Hangs("a@1"), Fails("b@1")], [[1], [2]])
    finally:
        held.set()


@pytest.mark.parametrize(
    ("scopes", "until"), [(("infer", "upload"), "until it expires"), ((), "until an administrator")]
)
def test_a_mask_that_stays_is_said_to_expire_only_where_servers_remove_it(scopes, until):
    def denied(name):
        raise PermissionDenied("DELETE needs the scope 'admin'", status=403)

    lines = []
    server = SimpleNamespace(
        registry=SimpleNamespace(delete=denied),
        limits=KeyInfo(scopes=frozenset(scopes)),
        generation=lambda: SimpleNamespace(close=lambda: None),
        say=lines.append,
        url="http://localhost",
        close=lambda: None,
    )
    rollouts = ServerRollouts(server, "rollout-1", max_tokens=3, temperature=1.0)
    rollouts._begun = True
    rollouts.close()
    assert [until in line for line in lines] == [True]


def pushing_to(**client):
    """Rollouts on a server whose registry has these functions alone."""
    server = SimpleNamespace(
        url="http://b",
        registry=SimpleNamespace(**client),
        limits=KeyInfo(scopes=frozenset()),
        generation=lambda: SimpleNamespace(close=lambda: None),
        call=lambda work: work(),
        close=lambda: None,
    )
    return ServerRollouts(server, "m", max_tokens=3, temperature=1.0)


def test_a_step_that_pushes_nothing_has_no_flips_and_no_bytes():
    """It had those of the push before it."""
    rollouts = pushing_to(
        upload=lambda mask, name, expires: None,
        push=lambda name, before, mask, expires: None,
        versions=lambda name: [],
    )
    mask = make_mask(0)
    rollouts.push(mask)
    assert rollouts.flips == mask.zeros
    assert rollouts.push_bytes > 0
    rollouts.push(mask)
    assert (rollouts.flips, rollouts.push_bytes, rollouts.push_seconds) == (0, 0, 0)


def test_a_push_that_another_servers_failure_ends_leaves_no_mask():
    """The removal came before the end of the push, and the mask stayed until it expired."""
    pushing, done, events = threading.Event(), threading.Event(), []

    def upload(mask, name, expires):
        pushing.set()
        done.wait(5)
        events.append("pushed")

    rollouts = pushing_to(
        upload=upload, versions=lambda name: [], delete=lambda name: events.append("removed")
    )
    mask = make_mask(0)
    thread = threading.Thread(target=rollouts.push, args=(mask,))
    thread.start()
    pushing.wait(5)
    threading.Timer(0.2, done.set).start()
    rollouts.close(finished=False)
    thread.join()
    assert events == ["pushed", "removed"]
    with pytest.raises(RolloutError, match="the run has ended"):
        ServerRollouts._upload(rollouts, mask)
    assert events == ["pushed", "removed"]
