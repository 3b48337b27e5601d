"""Requests of rollouts to a server. Answers by mask: tests/server/serving/test_serve.py."""

from __future__ import annotations

from types import SimpleNamespace

from bmt_trainer.methods.rollouts.server import ServerRollouts
from vllm.entrypoints.openai.completion.protocol import CompletionRequest


def test_nothing_of_sampling_is_left_to_the_checkpoints_settings():
    """Llama-3.2-Instruct's recommend top_p 0.9: samples of it are not the policy's."""
    asked = []

    def create(**fields):
        asked.append({**fields, **fields.pop("extra_body")})
        one = SimpleNamespace(index=0, token_ids=[1], logprobs=SimpleNamespace(token_logprobs=[0]))
        return SimpleNamespace(model="m@1", choices=[one])

    client = SimpleNamespace(
        openai=lambda: SimpleNamespace(completions=SimpleNamespace(create=create))
    )
    rollouts = ServerRollouts(
        client, "m", lambda: None, list, completions=2, max_tokens=3, temperature=0.7
    )
    rollouts._ask("m@1", [5, 6], seed=0)
    [sent] = asked
    recommended = {"repetition_penalty": 1.1, "presence_penalty": 1.5, "frequency_penalty": 0.5}
    recommended |= {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1}
    taken = CompletionRequest(**sent).to_sampling_params(3, recommended)
    assert (taken.temperature, taken.top_p, taken.top_k, taken.min_p) == (0.7, 1.0, 0, 0.0)
    assert taken.repetition_penalty == 1.0
    assert taken.presence_penalty == taken.frequency_penalty == 0.0
