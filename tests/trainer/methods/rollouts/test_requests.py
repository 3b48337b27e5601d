"""Requests of rollouts and their answers. Answers by mask: tests/server/serving/test_serve.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bmt_client import KeyInfo, PermissionDenied
from bmt_trainer.errors import RolloutError
from bmt_trainer.methods.rollouts.server import ServerRollouts, _read
from vllm.entrypoints.openai.completion.protocol import CompletionRequest


def sent_with(**settings):
    """The fields of the request that rollouts send."""
    server = SimpleNamespace(
        registry=None,
        limits=KeyInfo(scopes=frozenset()),
        generation=lambda: None,
    )
    rollouts = ServerRollouts(server, "m", lambda: None, max_tokens=3, temperature=0.7, **settings)
    return rollouts._request("m@1", [5, 6], 1, seed=0)


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
    asked = []
    server = SimpleNamespace(
        registry=None, limits=KeyInfo(scopes=frozenset(), max_n=4), generation=lambda: None
    )
    rollouts = ServerRollouts(server, "m", lambda: None, max_tokens=3, temperature=1.0)
    rollouts._pushed_for = lambda trainer: "m@1"
    rollouts._answers = lambda requests: asked.extend(requests) or []
    trainer = SimpleNamespace(state=SimpleNamespace(global_step=2))
    rollouts.turn([[1]] * 6 + [[2]] * 3, trainer, first=True)
    assert [(one["prompt"], one["n"]) for one in asked] == [([1], 4), ([1], 2), ([2], 3)]
    assert len({one["seed"] for one in asked}) == 3


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
    rollouts = ServerRollouts(server, "rollout-1", lambda: None, max_tokens=3, temperature=1.0)
    rollouts._begun = True
    rollouts.close()
    assert [until in line for line in lines] == [True]
