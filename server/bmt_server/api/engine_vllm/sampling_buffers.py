"""Fixed sizes in vLLM's engine: whether a request fits them, asked before the engine is.

The runner of CUDA keeps each request's token ids in rows of a fixed length and raises in the middle
of a step for what does not fit, which ends the engine (vLLM's `v1/worker/gpu/sample/`). Here
the same methods run without their buffers, so the bounds are those of the installed vLLM. They
apply with every runner: replicas answer alike.
"""

from __future__ import annotations

from typing import Any

import msgspec
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


def check_integers(params: Any) -> None:
    """Raise VLLMValidationError, which is a 400, for an integer of more than 64 bits.

    The engine's messages hold no longer ones, and their encoder raises when vLLM has already noted
    the request (vLLM 0.32.0, `v1/serial_utils.py`).
    """
    try:
        _ENCODER.encode(params)
    except OverflowError:
        field = next((n for n in params.__struct_fields__ if _too_long(getattr(params, n))), None)
        raise VLLMValidationError(
            f"`{field or 'a field'}` has an integer of more than 64 bits", parameter=field
        ) from None


# Values that msgpack has no form for are vLLM's own, and none of them is an integer.
_ENCODER = msgspec.msgpack.Encoder(enc_hook=lambda value: None)


def _too_long(value: Any) -> bool:
    try:
        _ENCODER.encode(value)
    except OverflowError:
        return True
    return False
