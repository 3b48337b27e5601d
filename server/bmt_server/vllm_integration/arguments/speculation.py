"""Speculative decoding with masks: the kinds that keep a mask's answers. Imports no vLLM.

A drafter runs without masks: the mask manager hooks the modules of the target model only, which
vLLM loads before the drafter. The target computes every drafted token under the request's mask and
vLLM keeps the tokens that it would have produced itself, so a mask changes how many drafts are
accepted and never the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Methods whose drafts the target verifies, by vLLM's names. `suffix` proposes text of earlier
#: answers, see `reason_against`.
VERIFIED = frozenset(
    ("ngram", "[ngram]", "ngram_gpu", "suffix", "draft_model", "eagle", "eagle3", "mtp")
)
#: End of vLLM's names of MTP modules of single models; it calls all of them `mtp` later.
MTP = "_mtp"
#: Ways of accepting drafts that keep the target's tokens; vLLM has `synthetic` besides, for tests.
KEEPING = ("standard", "block")
_GLOBAL_CACHE = "suffix_decoding_max_cached_requests"


def method_allowed(method: Any) -> bool:
    """True for a verified method, and for None: vLLM derives it from the draft model later."""
    return method is None or (
        isinstance(method, str) and (method in VERIFIED or method.endswith(MTP))
    )


def reason_against(config: Any, *, tenants: bool) -> str | None:
    """Reason to refuse a value of `--speculative-config`; None if it keeps a mask's answers.

    tenants: requests come from several owners, who must not learn of each other's.
    """
    if config is None:
        return None
    if not isinstance(config, Mapping):
        return "it is no JSON object"
    given = {str(key).replace("-", "_"): value for key, value in config.items()}
    if not method_allowed(given.get("method")):
        return (
            f"masks work with the methods {', '.join(sorted(VERIFIED))}, and "
            f"{given['method']!r} is not known to verify its drafts under a request's mask"
        )
    accepting = given.get("rejection_sample_method", KEEPING[0])
    if accepting == "synthetic":
        return (
            "rejection_sample_method 'synthetic' accepts drafts that the masked model did not "
            f"verify; use {' or '.join(KEEPING)}"
        )
    if accepting not in KEEPING:
        return (
            f"rejection_sample_method is {accepting!r}; it must be {' or '.join(KEEPING)}, "
            f"and without it vLLM uses {KEEPING[0]}"
        )
    if tenants and given.get("method") == "suffix" and given.get(_GLOBAL_CACHE) != 0:
        return (
            "suffix decoding drafts from earlier answers of all tenants, so the time of an answer "
            f'shows if another tenant got it before; add "{_GLOBAL_CACHE}": 0'
        )
    return None
