"""Sampling settings of rollout requests. Answers by mask: tests/server/serving/test_serve.py."""

from __future__ import annotations

from types import SimpleNamespace

from bmt_client import KeyInfo
from bmt_trainer.methods.rollouts.server import ServerRollouts
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
