"""Checks of a server before a run generates anything: key, base and limits against the run's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bmt_client import BmtClient, KeyInfo, NotFound, ProtocolError

from bmt_trainer.errors import RolloutError

_SCOPES = ("infer", "upload")


@dataclass(frozen=True)
class Requirements:
    """The needs of a run's rollouts.

    fingerprint: of the base; prompt, answer: tokens of the longest ones; completions: of a prompt;
    sparsity: the share of the gate weights that the first mask is expected to delete.
    """

    fingerprint: str
    prompt: int
    answer: int
    completions: int
    sparsity: float

    def check(self, url: str, server: KeyInfo) -> None:
        """Compare with what the server states, as far as it does. Raises RolloutError."""
        missing = [scope for scope in _SCOPES if not server.may(scope)]
        if server.scopes and missing:
            raise RolloutError(
                f"server {url}: the key {server.key_id} has the scopes "
                f"{', '.join(sorted(server.scopes))}, and rollouts need infer and upload; create "
                "one by bmt-server keys create --scope infer --scope upload"
            )
        if server.fingerprint and server.fingerprint != self.fingerprint:
            raise RolloutError(
                f"server {url} serves another base: its weights have the fingerprint "
                f"{server.fingerprint[:12]}, those of the model {self.fingerprint[:12]}; serve the "
                "checkpoint that is trained"
            )
        if server.quantized:
            raise RolloutError(
                f"server {url} serves a quantized copy of the base ({server.precision}), whose "
                "answers are not those of the weights that are trained; serve the 16-bit checkpoint"
            )
        context, needed = server.max_model_len, self.prompt + self.answer
        if context is not None and needed > context:
            room = context - self.prompt
            shorter = f"lower max_new_tokens to {room} or less" if room > 0 else "lower max_length"
            raise RolloutError(
                f"server {url} has a context of {context:,} tokens, and the longest prompt with "
                f"max_new_tokens takes {self.prompt:,} + {self.answer:,}; serve with "
                f"--max-model-len {needed}, or {shorter}"
            )
        if server.max_n is not None and self.completions > server.max_n:
            raise RolloutError(
                f"completions: server {url} samples at most {server.max_n} of a prompt (`n`), not "
                f"{self.completions}; lower completions"
            )
        bound = server.max_sparsity
        if bound is not None and self.sparsity > bound:
            raise RolloutError(
                f"server {url} takes masks of at most {bound:.3%} of the gate weights, and those "
                f"of this run start at about {self.sparsity:.3%}; serve with --max-sparsity "
                f"{_rounded_up(self.sparsity)}, or lower eta or init_std"
            )


def too_many_zeros(url: str, sparsity: float, bound: float) -> RolloutError:
    """The error for a mask that has outgrown the server's bound."""
    return RolloutError(
        f"the mask deletes {sparsity:.3%} of the gate weights, and server {url} takes at most "
        f"{bound:.3%}; serve with --max-sparsity {_rounded_up(sparsity)}, or leave --server out, "
        "and go on with --resume; or start over with a lower learning_rate"
    )


def _rounded_up(sparsity: float) -> float:
    """Twice a share, to one digit: room to grow."""
    return min(1.0, float(f"{2 * sparsity:.1g}"))


def stated_by(client: BmtClient, say: Callable[[str], None]) -> KeyInfo:
    """Key, base and limits as the server states them; less of a server of an earlier build.

    Raises BmtClientError, and ProtocolError if it is no bmt-server.
    """
    try:
        return client.me()
    except NotFound:
        pass
    try:
        context = next((m.max_model_len for m in client.models() if m.parent is None), None)
        mask = next(client.list(page_size=1), None)
    except NotFound as error:
        raise ProtocolError(
            f"{client.base_url} is no bmt-server: it has neither /v1/me nor /v1/masks"
        ) from error
    say(
        f"server {client.base_url} is of an earlier build, which does not state its limits: the "
        "key's scopes, `n` and the bound on masks are not checked before the run"
    )
    fingerprint = "" if mask is None else mask.base.fingerprint
    return KeyInfo(scopes=frozenset(), fingerprint=fingerprint, max_model_len=context)
