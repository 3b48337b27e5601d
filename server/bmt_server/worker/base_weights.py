"""Identity of the base weights in one worker, which masks belong to and read values from.

Base weights may be replaced while the engine lives: reloaded from a checkpoint, or sent by a
trainer. Three things hold then. The mask in place leaves before a weight changes, so that nothing
writes values of the former base later. Values that were read from the former base are forgotten,
and read again at the next use. And masks are refused by name until the weights are known to be
those of the fingerprint again, because a mask of another base gives wrong answers without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from bmt_server.worker.runtime import MaskRuntime

# One element of a tensor as an integer, by its size in bytes.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class BaseWeights:
    """The base weights of one worker; used by the step's thread only."""

    def __init__(
        self,
        runtime: MaskRuntime,
        fingerprint: str,
        tensors: Callable[[], Iterable[torch.Tensor]],
    ) -> None:
        """fingerprint: of the base that masks are checked against; tensors: the model's weights."""
        self._runtime = runtime
        self._fingerprint = fingerprint
        self._tensors = tensors
        # Checksum of the weights when foreign code got them; None: it has not since the last check.
        self._exposed: tuple[int, ...] | None = None

    @contextmanager
    def replacement(self, way: str) -> Iterator[None]:
        """Surround a replacement of base weights; `way` names it. Masks are refused from here on.

        Also if it fails: some weights may be new then.
        """
        self._runtime.leave_weights()
        self._runtime.refuse_masks(
            f"the base weights were replaced ({way}) and are not known to be those of fingerprint "
            f"{self._fingerprint[:12]}… any more, which this mask belongs to; reload that "
            "checkpoint (reload_weights), or start the server again with the new one"
        )
        self._exposed = None
        try:
            yield
        finally:
            self._runtime.forget_values()

    def verified(self, fingerprint: str) -> bool:
        """Accept masks again if a reloaded checkpoint has the fingerprint. Returns True if so."""
        if fingerprint != self._fingerprint:
            return False
        self._runtime.accept_masks()
        return True

    def leave(self) -> None:
        """Take a mask in place out of the weights."""
        self._runtime.leave_weights()

    def forget(self) -> None:
        """Forget what was read from the weights."""
        self._runtime.forget_values()

    def expose(self) -> None:
        """Prepare for code that may read or write the weights: it gets the base, not a mask."""
        self._runtime.leave_weights()
        if self._exposed is None:
            self._exposed = checksum(self._tensors())

    def check_exposed(self) -> None:
        """Refuse masks if the weights changed since `expose`. A no-op without it."""
        if self._exposed is None:
            return
        before, self._exposed = self._exposed, None
        if checksum(self._tensors()) != before:
            with self.replacement("by a function that had the model"):
                pass


def checksum(tensors: Iterable[torch.Tensor]) -> tuple[int, ...]:
    """A sum over the bits of each tensor: it changes with the weights, but is no proof of them.

    Reads the weights once at memory bandwidth, where a hash would take seconds per gigabyte.
    """
    sums = []
    # Detached, so no gradient is kept.
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
        sums.append(int(bits.sum(dtype=torch.int64)) if bits.numel() else 0)
    return tuple(sums)
