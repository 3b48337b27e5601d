"""The masked delta on a GPU with Triton: one launch per layer, compatible with CUDA graphs.

The batch composition reaches the GPU through one fixed buffer, `token_mask` int64 [max tokens]:
each token's mask as an address, 0 for the base and for a graph's padding. A recorded launch reads
it again at each replay, so one graph serves every mixture of masks, and `plan` and `idle` only fill
the buffer. No method here reads from the GPU.

Behavior of vLLM 0.32.0 around a captured step, and the consequences here:

- Both model runners pass the batch's adapters before the forward pass and outside of a capture:
  `v1/worker/gpu_model_runner.py`, `_prepare_inputs`, and `v1/worker/gpu/model_runner.py`,
  `execute_model`; for dummy runs `v1/worker/lora_model_runner_mixin.py`,
  `maybe_select_dummy_loras`, in the second runner through `v1/worker/gpu/lora_utils.py`,
  `create_lora_capture_hook`.
- They pass the scheduled tokens only, and a graph runs more (`v1/cudagraph_dispatcher.py`,
  `_create_padded_batch_descriptor`; `v1/worker/gpu/cudagraph_utils.py`, `dispatch`). So the buffer
  stays 0 beyond a step's tokens.
- Graphs are captured with dummy adapters, for which `plan` gets base tokens only: run() launches
  then, because steps with masks replay the recording. With `cudagraph_specialize_lora` (the
  default), and always in the second runner, steps without any adapter have their own graphs,
  captured without dummies (`get_lora_capture_cases`, `CudagraphDispatcher._get_lora_cases`):
  `idle` precedes those, and run() records nothing.
- A step in place also replays graphs with launches, because its batch has adapters: `idle` has
  cleared the buffer, and the programs end at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from bmt_server.ipc.mask_layout import Layout
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels.costs import GPU
from bmt_server.worker.kernels.triton import delta, weights
from bmt_server.worker.kernels.triton.arena import Arena, DeviceMask, on_host
from bmt_server.worker.resident_mask import ResidentMask, load_mask

# Least number of consecutive tokens with one mask that become a tile.
_TILE_FROM = 32
# Tiles per launch; bounds the scratch to 32 * 64 tokens of x, 16 MiB for 4,096 columns in bf16.
_TILES_AT_ONCE = 32


class KernelInputError(RuntimeError):
    """The kernel does not support the gates or a step; the message names value and limit."""


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Runs of tokens with one mask, cut to TILE: start, count int32 and mask int64 [tiles]."""

    start: torch.Tensor
    count: torch.Tensor
    mask: torch.Tensor

    def parts(self) -> list[_Tiles]:
        split = (t.split(_TILES_AT_ONCE) for t in (self.start, self.count, self.mask))
        return [_Tiles(*part) for part in zip(*split, strict=True)]


class TritonKernel:
    """`masked_delta.Kernel` for one model's gates on one GPU, used by the worker's one thread.

    memory_bytes: reserved for masks at construction; max_tokens: bound on a step's tokens, padding
    included; graph_tokens: bound on the tokens of a step that a CUDA graph runs, 0 without graphs.
    Raises KernelInputError for gates of several dtypes or column widths, MaskStoreError if the
    memory does not fit.
    """

    name = "triton"
    description = "one launch per layer, recorded by CUDA graphs"
    costs = GPU

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
                "the gates differ in dtype, or only some have more than 65,536 columns; use the "
                "portable kernel: set BMT_KERNEL=portable and --enforce-eager"
            )
        self._gates, self._dtype, self._wide = gates, dtype, wide.pop()
        self.arena = Arena(device, memory_bytes)
        self._graph_tokens = graph_tokens
        self._token_mask = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        # Content of token_mask after all enqueued work; zeros from _used on.
        self._written, self._used = np.zeros(max_tokens, np.int64), 0
        scratch = (_TILES_AT_ONCE, widest, delta.TILE)
        self._transposed = torch.empty(scratch, dtype=dtype, device=device)
        self._weights = _addresses(gates)
        # Grid and constants of the kernels over all weights of the model.
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
        # Tokens that the launch of `correct` covers; 0: no launch.
        self._until = 0
        # Tokens of a rehearsal that no graph may be captured from; 0: of any other step.
        self._beyond_graphs = 0
        self._warm_up()

    def bind(self, first: int) -> None:
        pass

    def plan(self, token_masks: np.ndarray, masks: Mapping[int, ResidentMask]) -> None:
        """See `masked_delta.Kernel`. Base tokens only mean a step that graphs are captured from."""
        tokens = token_masks.size
        if tokens > self._written.size:
            raise KernelInputError(
                f"a step has {tokens} tokens, and the kernel supports at most {self._written.size}"
            )
        self._beyond_graphs = tokens if not masks and tokens > self._graph_tokens else 0
        # References keep the arena from reusing the memory while this plan holds.
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
        # In a graph the launch covers all tokens, otherwise those up to the last that has a mask
        # and no tile: vLLM orders the tokens of prompts after those that decode.
        if tokens <= self._graph_tokens:
            self._until = self._written.size
        else:
            self._until = int(np.flatnonzero(addresses)[-1]) + 1 if addresses.any() else 0

    def idle(self) -> None:
        self._until, self._tiles, self._masks, self._beyond_graphs = 0, [], [], 0
        self._write(np.zeros(0, np.int64))

    def run(self, layer: int, y: torch.Tensor, x: torch.Tensor) -> None:
        if self._beyond_graphs and _captures(y.device):
            raise KernelInputError(
                f"a CUDA graph of {self._beyond_graphs} tokens is captured, and masks were "
                f"prepared for at most {self._graph_tokens}: its steps would answer as the base; "
                "set --max-cudagraph-capture-size to the largest size"
            )
        if not self._until and not self._tiles:
            return
        if {y.dtype, x.dtype} != {self._dtype} or (y.stride(1), x.stride(1)) != (1, 1):
            raise KernelInputError(
                f"the gates are {self._dtype} with contiguous rows; y is {y.dtype} {y.stride()} "
                f"and x {x.dtype} {x.stride()}"
            )
        if x.shape[0] > self._written.size:
            raise KernelInputError(
                f"a step has {x.shape[0]} tokens, and the kernel supports at most "
                f"{self._written.size}"
            )
        if self._until:
            self._correct(layer, y, x)
        for tiles in self._tiles:
            self._correct_tiles(layer, y, x, tiles)

    def to_device(self, mask: ResidentMask, *, allow_overflow: bool = False) -> DeviceMask:
        """Copy a mask from the host into the arena and read its values from the weights."""
        copy = self.arena.copy_in(mask, allow_overflow=allow_overflow)
        weights.read_values[self._all_rows](copy.address, self._weights, **self._options)
        return copy

    def switch(self, old: ResidentMask | None, new: ResidentMask | None) -> None:
        """See `masked_delta.Kernel`; one launch."""
        self.arena.order()
        weights.switch[self._all_rows](_address(old), _address(new), self._weights, **self._options)

    def _warm_up(self) -> None:
        """Run every kernel once on a mask without zeros, because a capture must not compile any."""
        (r, k), device = self._gates[0].shape, self._token_mask.device
        empty = load_mask(Layout("", {}), self._gates, partial(self.to_device, allow_overflow=True))
        tokens = min(delta.TILE, self._written.size)
        y = torch.zeros(tokens, 2 * r, dtype=self._dtype, device=device)
        x = torch.zeros(tokens, k, dtype=self._dtype, device=device)
        for few in (1, delta.STAGE_TOKENS + 1):  # with x in shared memory, and without
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
        delta.transpose[count, _ceil(k, delta.TRANSPOSE_COLUMNS)](
            x,
            self._transposed,
            tiles.start,
            tiles.count,
            k,
            x.stride(0),
            COLUMNS=delta.TRANSPOSE_COLUMNS,
            TILE=delta.TILE,
        )
        delta.correct_tiles[count, _ceil(r, delta.TILE_ROWS)](
            y,
            self._transposed,
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
        """Set token_mask to `addresses`, and to 0 beyond them."""
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
        """Cut runs of tokens into tiles, in new tensors: no graph runs a step with tiles."""
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


def _captures(device: torch.device) -> bool:
    """True while a CUDA graph is captured on the current stream."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _addresses(gates: Sequence[GateLayer]) -> torch.Tensor:
    """The table of gates for `weights.py`, int64 [layers, 3]."""
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
    assert isinstance(mask, DeviceMask), "masks come from this kernel's to_device()"
    return mask.address


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
