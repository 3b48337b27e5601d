"""Fields of a request that contradict each other, so that no token is left to choose.

vLLM sets the logits of excluded tokens to minus infinity, one field after the other. If none is
left, it chooses an excluded one; a grammar refuses that, which vLLM answers by 500. Fields that
name tokens are compared before the engine sees the request. A grammar's tokens are known to the
engine alone, so its refusal is read from the output (vLLM 0.32.0, `v1/core/sched/scheduler.py`,
`update_from_output`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

logger = logging.getLogger("vllm.bmt_server")

#: Fields that exclude tokens whatever the grammar allows.
EXCLUDING = ("allowed_token_ids", "bad_words", "min_tokens")


def check_parameters(params: Any) -> None:
    """Raise VLLMValidationError, which is a 400, if the fields leave no token.

    params: complete, with the stop ids of the model and the tokens of bad words.
    """
    if not isinstance(params, SamplingParams) or not params.allowed_token_ids:
        return
    excluded = {ids[0] for ids in params.bad_words_token_ids or () if len(ids) == 1}
    fields = ["`bad_words`"] if excluded else []
    if params.min_tokens > 0 and params.all_stop_token_ids:
        excluded |= params.all_stop_token_ids
        fields.append("`min_tokens`, before which nothing ends")
    if excluded.issuperset(params.allowed_token_ids):
        raise VLLMValidationError(
            f"`allowed_token_ids` has no token that is not excluded by {' or '.join(fields)}",
            parameter="allowed_token_ids",
        )


def check_output(params: Any, output: Any, tokens: Mapping[int, int]) -> bool:
    """True if the engine failed on a request for which the request is not to blame.

    Raises VLLMValidationError, which is a 400, if it is. tokens: of each choice until now, with
    those of this output.
    """
    failed = [
        completion
        for completion in (output.outputs if isinstance(output.outputs, list) else ())
        if completion.finish_reason == "error"
    ]
    if not failed:
        return False
    structured = getattr(params, "structured_outputs", None)
    if structured is None:
        return True
    fields = [f"`{name}`" for name in EXCLUDING if getattr(params, name, None)]
    count = min(tokens.get(completion.index, 0) for completion in failed)
    if count > 1 and not fields:
        # The grammar had tokens to allow, and nothing else excludes any.
        return True
    logger.warning("Request %s: its grammar left no token at %d.", output.request_id, count)
    backend = structured._backend
    if not count:
        reason = f"the structured-output backend of this server, {backend}, cannot compile it"
    elif fields:
        reason = f"no token that the grammar allows is left by {' and '.join(fields)}"
    else:
        reason = "the grammar allows no token at all"
    raise VLLMValidationError(f"structured output: {reason}", parameter="structured_outputs")
