"""Rollouts on one bmt-server: each step's mask is pushed as flips, and completions requested.

A mask's version is named by its digest, so the step's own mask answers its requests, whatever else
the server does meanwhile. A server that restarts is waited for: its mask is pushed again if it is
gone, and requests without an answer are sent again with their seeds, which gives the same tokens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bmt_client import BmtClientError, Conflict, NotFound, Upload
from bmt_core import Mask, encode, symmetric_difference

from bmt_trainer.errors import RolloutError
from bmt_trainer.evaluation.generate import NEUTRAL_SAMPLING
from bmt_trainer.methods.rollouts.checks import too_many_zeros
from bmt_trainer.methods.rollouts.connection import Connection
from bmt_trainer.methods.rollouts.generation import Answer
from bmt_trainer.methods.rollouts.outage import (
    TookTooLong,
    Unanswered,
    is_passing,
    refusal,
    words,
)

#: A mask's name on a server begins so: a key with the scope `upload` may remove it.
PREFIX = "rollout-"

#: A completion's token ids and log-probabilities.
Completion = tuple[list[int], list[float]]

# Versions kept on the server besides the newest, for rollouts that may still run.
_KEPT = 1
# The server removes the mask of a run that has not pushed for so long; renewed after a quarter.
_EXPIRES, _RENEWED_S = "24h", 6 * 3600.0
# The mask may vanish as often while a turn waits for the same answers.
_VANISHED = 3
# Seconds to wait for a server that restarts while a finished run removes its mask.
_TIDIES_S, _PAUSE_S = 60.0, 2.0
# Seconds to wait for a push of another thread when the run ends: its mask would come after the
# removal, and stay.
_PUSHES_S = 10.0
_WARNED_SHARE = 0.5


class ServerRollouts:
    """Versions of the run's mask on a server, and completions under them.

    name: of the mask on the server; sampling: top_p, top_k and min_p, if they are not neutral, and
    stop_token_ids: the tokens that end an answer, which the server's own settings may lack.
    """

    def __init__(
        self,
        server: Connection,
        name: str,
        *,
        max_tokens: int,
        temperature: float,
        sampling: Mapping[str, Any] = NEUTRAL_SAMPLING,
    ) -> None:
        self._server, self._client, self._name = server, server.registry, name
        self._max_tokens, self._temperature = max_tokens, temperature
        self._sampling = {**NEUTRAL_SAMPLING, **sampling}
        self._pushed: list[Mask] = []
        self._begun = False  # the server may have the name, even if no answer has said so
        self._renewed = 0.0
        self._stale: set[str] = set()  # digests of versions to remove
        self._may_retire, self._warned = True, False
        self._pushing, self._closed = threading.Lock(), False
        self.push_seconds, self.push_bytes, self.flips = 0.0, 0, 0
        self._generation = server.generation()

    @property
    def model(self) -> str:
        """The name of the latest version, as requests give it."""
        return self._model_of(self._pushed[-1])

    @property
    def most(self) -> int | None:
        """The number of completions that a request may ask for, if the server states one."""
        return self._server.limits.max_n

    def follow(self, mask: Mask) -> None:
        """Ask for completions of `mask` from now on, which another process has pushed."""
        self._pushed = [*self._pushed[-_KEPT:], mask]

    def push(self, mask: Mask) -> None:
        """Make `mask` the server's latest version.

        Raises RolloutError, also for a mask with more zeros than the server takes.
        """
        self._check_sparsity(mask)
        start = time.perf_counter()
        self.push_seconds, self.push_bytes, self.flips = 0.0, 0, 0
        flips = symmetric_difference(self._pushed[-1], mask) if self._pushed else mask
        if not self._pushed:
            self._begun = True
            self._server.call(lambda: self._upload(mask))
            self._server.call(lambda: self._find_stale(mask))
        elif mask.digest == self._pushed[-1].digest:
            if time.monotonic() - self._renewed > _RENEWED_S:
                self._server.call(lambda: self._upload(mask))
            return
        elif flips.zeros < mask.zeros:
            self._server.call(lambda: self._push_flips(mask))
        else:  # more than the whole, and perhaps than the server takes
            self._server.call(lambda: self._upload(mask))
        self.push_seconds = time.perf_counter() - start
        self.push_bytes, self.flips = len(encode(flips)), flips.zeros
        self._pushed.append(mask)
        self._stale |= {old.digest for old in self._pushed[: -1 - _KEPT]}
        del self._pushed[: -1 - _KEPT]
        self._retire()

    def _model_of(self, mask: Mask) -> str:
        return f"{self._name}@{mask.digest[:12]}"

    def _check_sparsity(self, mask: Mask) -> None:
        bound = self._server.limits.max_sparsity
        if bound is None:
            return
        if mask.sparsity > bound:
            raise too_many_zeros(self._server.url, mask.sparsity, bound)
        if mask.sparsity > _WARNED_SHARE * bound and not self._warned:
            self._warned = True
            self._server.say(
                f"the mask deletes {mask.sparsity:.3%} of the gate weights, and the server takes "
                f"at most {bound:.3%} (--max-sparsity): beyond that the run ends with a checkpoint"
            )

    def _upload(self, mask: Mask) -> Upload:
        return self._change(lambda: self._client.upload(mask, self._name, expires=_EXPIRES))

    def _change(self, push: Callable[[], Upload]) -> Upload:
        """Push a version, unless the run has ended: another server may have, in another thread."""
        with self._pushing:
            if self._closed:
                raise RolloutError(f"server {self._server.url}: the run has ended")
            version = push()
        self._renewed = time.monotonic()
        return version

    def _push_flips(self, mask: Mask) -> Upload:
        try:
            return self._change(
                lambda: self._client.push(self._name, self._pushed[-1], mask, expires=_EXPIRES)
            )
        except (NotFound, Conflict) as error:
            self._server.say(
                f"{self._name} has changed on the server ({error}); pushed again whole"
            )
            return self._upload(mask)

    def _find_stale(self, mask: Mask) -> None:
        """Find versions that an earlier part of this run has left."""
        digests = {version.digest for version in self._client.versions(self._name)}
        self._stale = digests - {mask.digest}

    def _retire(self) -> None:
        """Remove versions that no rollout needs; what fails is tried again after the next push."""
        kept = {mask.digest for mask in self._pushed}  # training may come back to a mask
        for digest in sorted(self._stale - kept) if self._may_retire else ():
            try:
                self._client.delete_version(self._name, digest)
            except NotFound:  # another client has deleted it
                pass
            except BmtClientError as error:
                if is_passing(error):
                    return
                self._may_retire = False
                self._server.say(f"old versions of {self._name} stay on the server ({error})")
                return
            self._stale.discard(digest)

    def request(self, model: str, ids: list[int], count: int, seed: int) -> dict[str, Any]:
        """The fields of a request for `count` completions of one prompt."""
        context, most = self._server.limits.max_model_len, self._max_tokens
        if context is not None and len(ids) + most > context:
            # Results of calls have taken up the server's context: the rest of it, if any.
            most = context - len(ids)
        return {
            "model": model,
            "prompt": ids,
            "n": count,
            "logprobs": 0,
            "seed": seed,
            "max_tokens": most,
            "temperature": self._temperature,
            "return_token_ids": True,
            **self._sampling,
        }

    def answers(self, asked: Sequence[dict[str, Any]]) -> list[list[Completion]]:
        """The completions of each request, asked for until there is an answer to all.

        A request is always the same, its seed included, so that a run whose server was away ends
        with the mask of an undisturbed one. Raises RolloutError.
        """
        found: dict[int, list[Completion]] = {}
        for at, request in enumerate(asked):
            if request["max_tokens"] <= 0:
                found[at] = [([], [])] * request["n"]
        slow, vanished, outage = set[int](), 0, self._server.outage()
        while open_ := [at for at in range(len(asked)) if at not in found]:
            before, failed = len(found), None
            answers = self._generation.run([asked[at] for at in open_])
            for at, answer in zip(open_, answers, strict=True):
                try:
                    found[at] = _read(answer, asked[at])
                    continue
                except (BmtClientError, Unanswered) as caught:
                    error = caught
                if isinstance(error, TookTooLong):
                    if at in slow:
                        raise self._too_slow(error)
                    slow.add(at)
                may_restore = isinstance(error, NotFound) and vanished < _VANISHED
                if not is_passing(error) and not may_restore:
                    raise refusal(self._server.url, error) from error
                if failed is None or is_passing(error):
                    failed = error
            if len(found) > before:
                vanished = 0
                outage.over()
            if failed is not None and is_passing(failed):
                self._server.call(self._restore, after=failed, outage=outage)
            elif failed is not None:
                vanished += 1
                self._server.call(self._restore)
        return [found[at] for at in range(len(asked))]

    def _too_slow(self, error: TookTooLong) -> RolloutError:
        return RolloutError(
            f"server {self._server.url} took too long twice: {error}; look at its log, or raise "
            "--server-token-seconds, then go on with --resume"
        )

    def _restore(self) -> None:
        """Push the current mask again, whole, if it is gone from the server."""
        mask = self._pushed[-1]
        try:
            self._client.get(f"{self._name}@{mask.digest}")
        except NotFound:
            self._server.say(f"{self._model_of(mask)} is gone from the server; pushed again")
            self._upload(mask)

    def close(self, *, finished: bool = True) -> None:
        """End requests, and remove the mask's name from the server; never raises.

        finished: the run is, so there is time for a server that restarts just now.
        """
        self._closed = True
        self._generation.close()
        if self._pushing.acquire(timeout=_PUSHES_S):
            self._pushing.release()
        deadline = time.monotonic() + (_TIDIES_S if finished else 0.0)
        while self._begun:
            try:
                self._client.delete(self._name)
            except NotFound:
                pass
            except Exception as error:  # it must not hide the error that ended the run
                if is_passing(error) and time.monotonic() < deadline:
                    time.sleep(_PAUSE_S)
                    continue
                until = f"it expires, {_EXPIRES} after its last push"
                if not self._server.limits.scopes:  # of an earlier build, which knows no expiry
                    until = "an administrator removes it"
                self._server.say(
                    f"{self._name} stays on server {self._server.url} until {until} "
                    f"({words(error)})"
                )
            self._begun = False
        self._server.close()


def _read(answer: Answer, asked: Mapping[str, Any]) -> list[Completion]:
    """Token ids and log-probabilities of an answer's completions.

    Raises the error in its place, Unanswered for a part of one, RolloutError for another model's
    and for an answer to something else than was asked.
    """
    if isinstance(answer, Exception):
        raise answer
    model = asked["model"]
    if answer.get("model") != model:
        raise RolloutError(
            f"the server answered as {answer.get('model')}, not {model}; another client may have "
            "changed this run's name"
        )
    try:
        choices: list[Any] = sorted(answer["choices"], key=lambda choice: choice["index"])
        if cut := {str(choice["finish_reason"]) for choice in choices} - {"stop", "length"}:
            # A server that stops may send what there is.
            raise Unanswered(f"an answer ended by {', '.join(sorted(cut))}")
        read = [(list(c["token_ids"]), list(c["logprobs"]["token_logprobs"])) for c in choices]
    except (KeyError, TypeError) as error:
        raise RolloutError(
            f"the server's answer as {model} lacks token ids or log-probabilities ({error!r}); "
            "serve by bmt-server, without a proxy that changes requests"
        ) from error
    if len(read) != asked["n"] or any(len(tokens) != len(values) for tokens, values in read):
        raise RolloutError(
            f"the server's answer as {model} has {len(read)} completions of {asked['n']}, or other "
            "numbers of tokens than of log-probabilities"
        )
    return read
