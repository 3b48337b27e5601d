"""Fixed buffers of vLLM's model runner: whether a request fits them, asked before the engine is.

The runner of CUDA keeps each request's token ids in rows of a fixed length and raises in the middle
of a step for what does not fit, which ends the engine (vLLM 0.32.0, `v1/worker/gpu/sample/`). Here
the same methods run without their buffers, so the bounds are those of the installed vLLM. They
apply with every runner: replicas answer alike.
"""

from __future__ import annotations

from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
from vllm.v1.worker.gpu.sample.logprob import LogprobTokenIdsState

#: Every class of that package whose `add_request` raises.
STATES: tuple[Any, ...] = (LogitBiasState, BadWordsState, LogprobTokenIdsState)


class _NoBuffer:
    """Stands for any buffer of a state: takes every write and keeps none."""

    def __getattr__(self, name: str) -> _NoBuffer:
        return self

    def __getitem__(self, index: Any) -> _NoBuffer:
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        pass

    def __call__(self, *args: Any) -> _NoBuffer:
        return self

    def __int__(self) -> int:
        return 0


_NO_BUFFER = _NoBuffer()


def check_sampling_buffers(params: Any) -> None:
    """Raise VLLMValidationError, which is a 400, for parameters that no runner can hold.

    params: complete, with the stop ids of the model and the tokens of bad words; pooling parameters
    have no buffers.
    """
    if not isinstance(params, SamplingParams):
        return
    for state in STATES:
        try:
            state.add_request(_NO_BUFFER, 0, params)
        except ValueError as error:
            raise VLLMValidationError(str(error)) from None
