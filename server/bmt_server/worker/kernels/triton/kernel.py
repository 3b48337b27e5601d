"""`ops.Kernel` on a GPU: masks in an arena, one launch a layer, fit for CUDA graphs.

A step's composition reaches the GPU through one fixed buffer, `token_mask` [max tokens] int64: each
token's mask as an address, 0 for the base and for whatever a graph pads a step with. A recorded
launch reads it anew at each replay, so a graph serves every mixture of masks, and `plan` and
`idle` only fill it. Nothing in here reads from the GPU.

What vLLM 0.32.0 does around a captured step, and what follows for us:

- Both runners hand over the batch's adapters before the forward pass and outside a capture:
  `v1/worker/gpu_model_runner.py`, `_prepare_inputs`, and `v1/worker/gpu/model_runner.py`,
  `execute_model`; for dummy runs `v1/worker/lora_model_runner_mixin.py`,
  `maybe_select_dummy_loras`, in the second runner through `v1/worker/gpu/lora_utils.py`,
  `create_lora_capture_hook`.
- They tell the tokens that are scheduled; a graph runs more (`v1/cudagraph_dispatcher.py`,
  `_create_padded_batch_descriptor`; `v1/worker/gpu/cudagraph_utils.py`, `dispatch`). So all of
  the buffer beyond a step's tokens stays 0.
- Graphs are captured with dummy adapters, for which `plan` is given tokens of the base: run()
  then launches, since steps with masks replay what it records. With `cudagraph_specialize_lora`
  (the default) and in the second runner always, steps without any adapter have graphs of their
  own, captured without dummies (`get_lora_capture_cases`, `CudagraphDispatcher._get_lora_cases`):
  there `idle` came before, and run() records nothing.
- A step in place still replays graphs that hold launches, since its batch has adapters: `idle`
  has cleared the buffer, and they end at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from bmt_server.ipc.mask_layout import Layout
from bmt_server.worker import switch_policy
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels.triton import delta, weights
from bmt_server.worker.kernels.triton.arena import Arena, PlacedMask, on_host
from bmt_server.worker.resident_mask import ResidentMask, gather

# A run of one mask's tokens this long is worth a tile.
_TILE_FROM = 32
# Tiles turned at once: bounds the scratch to 32 * 64 tokens of x, 16 MiB at 4,096 columns in bf16.
_TILES_AT_ONCE = 32


class KernelInputError(RuntimeError):
    """A step does not fit what the kernel was made for; the message says how."""


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Runs of one mask's tokens, in pieces of TILE: start, count int32 and mask int64 [tiles]."""

    start: torch.Tensor
    count: torch.Tensor
    mask: torch.Tensor

    def parts(self) -> list[_Tiles]:
        split = (t.split(_TILES_AT_ONCE) for t in (self.start, self.count, self.mask))
        return [_Tiles(*part) for part in zip(*split, strict=True)]


class TritonKernel:
    """Masks on one model's gates, on one GPU; used by the worker's one thread.

    memory_bytes: what is reserved for masks, now. max_tokens: the most tokens of a step, padding
    included. graph_tokens: the most of a step that a CUDA graph may run; 0 without graphs.
    """

    name = "triton"
    note = "one launch a layer, recorded by CUDA graphs"
    costs = switch_policy.GPU

    def __init__(
        self,
        gates: Sequence[GateLayer],
        *,
        memory_bytes: int = 1 << 30,
        max_tokens: int = 8192,
        graph_tokens: int = 0,
    ) -> None:
        device, dtype = gates[0].device, gates[0].base.dtype
        widest = max(gate.shape[1] for gate in gates)
        wide = {gate.shape[1] > 1 << 16 for gate in gates}
        if len(wide) > 1 or any(gate.base.dtype != dtype for gate in gates):
            raise KernelInputError(
                "the gates differ in dtype, or some have more than 65,536 columns and some not; "
                "start with the portable kernel: --enforce-eager and no triton package"
            )
        self._gates, self._dtype, self._wide = gates, dtype, wide.pop()
        self.arena = Arena(device, memory_bytes)
        self._graph_tokens = graph_tokens
        self._token_mask = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        # What token_mask holds once all that is enqueued has run; zeros from _used on.
        self._written, self._used = np.zeros(max_tokens, np.int64), 0
        turned = (_TILES_AT_ONCE, widest, delta.TILE)
        self._turned = torch.empty(turned, dtype=dtype, device=device)
        self._weights = _addresses(gates)
        # What the kernels over all weights of the model are launched with.
        most_rows = max(gate.shape[0] for gate in gates)
        self._all_rows = (len(gates), _ceil(most_rows, weights.ROWS))
        self._options = {
            "BITS": 8 * gates[0].base.element_size(),
            "WIDE": self._wide,
            "ROWS": weights.ROWS,
            "WIDTH": weights.WIDTH,
            "num_warps": weights.ROWS // 32,
        }
        self._masks: list[ResidentMask] = []
        self._tiles: list[_Tiles] = []
        # How many tokens the launch of `correct` covers; 0: there is none.
        self._until = 0
        self._warm_up()

    def bind(self, first: int) -> None:
        pass

    def plan(self, token_masks: np.ndarray, masks: Mapping[int, ResidentMask]) -> None:
        """See `ops.Kernel`. Tokens of the base alone mean a step that graphs are captured from."""
        tokens = token_masks.size
        if tokens > self._written.size:
            raise KernelInputError(
                f"a step has {tokens} tokens and the kernel was made for {self._written.size}"
            )
        # References keep the places from being given to others while this plan holds.
        self._masks = list(masks.values())
        starts = np.flatnonzero(np.diff(token_masks, prepend=-1, append=-1))
        lengths = np.diff(starts)
        starts = starts[:-1]
        run_mask = np.array(
            [_address(masks[a]) if a else 0 for a in token_masks[starts].tolist()], np.int64
        )
        long = (run_mask != 0) & (lengths >= _TILE_FROM) & (tokens > self._graph_tokens)
        self._tiles = self._cut(starts[long], lengths[long], run_mask[long])
        run_mask[long] = 0
        addresses = np.repeat(run_mask, lengths)
        self._write(addresses)
        # In a graph the launch is for all tokens; else for those up to the last that has a mask
        # and no tile. vLLM has prompts' tokens behind the decoding ones.
        if tokens <= self._graph_tokens:
            self._until = self._written.size
        else:
            self._until = int(np.flatnonzero(addresses)[-1]) + 1 if addresses.any() else 0

    def idle(self) -> None:
        self._until, self._tiles, self._masks = 0, [], []
        self._write(np.zeros(0, np.int64))

    def run(self, layer: int, y: torch.Tensor, x: torch.Tensor) -> None:
        if not self._until and not self._tiles:
            return
        if {y.dtype, x.dtype} != {self._dtype} or (y.stride(1), x.stride(1)) != (1, 1):
            raise KernelInputError(
                f"the gates are {self._dtype} in contiguous rows; y is {y.dtype} {y.stride()} and "
                f"x {x.dtype} {x.stride()}"
            )
        if x.shape[0] > self._written.size:
            raise KernelInputError(
                f"a step has {x.shape[0]} tokens and the kernel was made for {self._written.size}"
            )
        if self._until:
            self._correct(layer, y, x)
        for tiles in self._tiles:
            self._correct_tiles(layer, y, x, tiles)

    def place(self, mask: ResidentMask, *, beyond: bool = False) -> PlacedMask:
        """Bring a mask from the host into the arena and gather its values from the weights."""
        placed = self.arena.place(mask, beyond=beyond)
        weights.take[self._all_rows](placed.address, self._weights, **self._options)
        return placed

    def switch(self, old: ResidentMask | None, new: ResidentMask | None) -> None:
        """Weights that hold `old` hold `new` instead, in one launch; None is the base."""
        self.arena.order()
        weights.switch[self._all_rows](_address(old), _address(new), self._weights, **self._options)

    def _warm_up(self) -> None:
        """Run every kernel once, on a mask without zeros: none may be compiled in a capture."""
        (r, k), device = self._gates[0].shape, self._token_mask.device
        empty = gather("", Layout("", {}), self._gates, partial(self.place, beyond=True))
        tokens = min(delta.TILE, self._written.size)
        y = torch.zeros(tokens, 2 * r, dtype=self._dtype, device=device)
        x = torch.zeros(tokens, k, dtype=self._dtype, device=device)
        for few in (1, delta.STAGE_TOKENS + 1):  # with x staged, and without
            self._until = few
            self._correct(0, y[:few], x[:few])
        self._until = 0
        self._tiles = self._cut(*(np.array([n]) for n in (0, tokens, _address(empty))))
        self.run(0, y, x)
        self.switch(empty, empty)
        self.idle()

    def _correct(self, layer: int, y: torch.Tensor, x: torch.Tensor) -> None:
        (r, k), tokens = self._gates[layer].shape, min(x.shape[0], self._until)
        all_blocks = _ceil(r, delta.ROWS)
        blocks = max(tokens * all_blocks // delta.PROGRAMS, 1)
        delta.correct[tokens, _ceil(all_blocks, blocks)](
            y,
            x,
            self._token_mask,
            layer,
            blocks,
            r,
            y.stride(0),
            x.stride(0),
            k,
            WIDE=self._wide,
            ROWS=delta.ROWS,
            WIDTH=delta.WIDTH,
            STAGE=delta.stage(tokens, k),
            num_warps=delta.WARPS,
        )

    def _correct_tiles(self, layer: int, y: torch.Tensor, x: torch.Tensor, tiles: _Tiles) -> None:
        r, k = self._gates[layer].shape
        count = tiles.mask.numel()
        delta.turn[count, _ceil(k, delta.TURN)](
            x,
            self._turned,
            tiles.start,
            tiles.count,
            k,
            x.stride(0),
            TURN=delta.TURN,
            TILE=delta.TILE,
        )
        delta.correct_tiles[count, _ceil(r, delta.TILE_ROWS)](
            y,
            self._turned,
            tiles.start,
            tiles.count,
            tiles.mask,
            layer,
            r,
            k,
            y.stride(0),
            WIDE=self._wide,
            TILE_ROWS=delta.TILE_ROWS,
            TILE=delta.TILE,
            num_warps=delta.TILE_WARPS,
        )

    def _write(self, addresses: np.ndarray) -> None:
        """Make token_mask hold `addresses`, and 0 beyond them."""
        self.arena.order()
        changed = max(addresses.size, self._used)
        after = np.zeros(changed, np.int64)
        after[: addresses.size] = addresses
        self._used = int(addresses.size)
        if not np.array_equal(after, self._written[:changed]):
            self._written[:changed] = after
            host = on_host(after, self._token_mask.device)
            self._token_mask[:changed].copy_(host, non_blocking=True)

    def _cut(self, starts: np.ndarray, lengths: np.ndarray, masks: np.ndarray) -> list[_Tiles]:
        """Runs as tiles, in new tensors: a step that has tiles is in no graph."""
        if not starts.size:
            return []
        pieces = -(-lengths // delta.TILE)
        nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        inside = nth * delta.TILE
        count = np.minimum(np.repeat(lengths, pieces) - inside, delta.TILE)
        arrays = (
            (np.repeat(starts, pieces) + inside).astype(np.int32),
            count.astype(np.int32),
            np.repeat(masks, pieces),
        )
        device = self._token_mask.device
        on_device = (on_host(array, device).to(device, non_blocking=True) for array in arrays)
        return _Tiles(*on_device).parts()


def _addresses(gates: Sequence[GateLayer]) -> torch.Tensor:
    """`triton_weights`' table of gates, int64 [layers, 3]."""
    words = []
    for gate in gates:
        weight = gate.base if gate.live is None else gate.live
        if weight.stride(1) != 1:
            raise KernelInputError(f"{gate.name}: rows are not contiguous ({weight.stride()})")
        words.append([weight.data_ptr(), weight.shape[0], weight.stride(0)])
    return torch.tensor(words, dtype=torch.int64).to(gates[0].device)


def _address(mask: ResidentMask | None) -> int:
    if mask is None:
        return 0
    assert isinstance(mask, PlacedMask), "masks come from this kernel's place()"
    return mask.address


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
