"""The masked delta on a GPU with Triton: one or two launches per layer, for CUDA graphs too.

The batch composition reaches the GPU through two fixed buffers: `token_mask` int64 [max tokens],
the mask of each token that is corrected by itself as an address, 0 for the base, for tokens of
tiles and for a graph's padding; and the table of tiles (`tiles.py`). A recorded launch reads them
again at each replay, so one graph serves every mixture of masks, and `plan` and `idle` only fill
the buffers. No method here reads from the GPU.

The choice of tiles depends on the step's own tokens T and never on the graph that replays it, which
may run more: a graph of fewer than _TILES_FROM tokens has no launch for tiles, and runs no step of
as many; a graph of S tokens has room for most_tiles(S) >= most_tiles(T).

Behavior of vLLM 0.32.0 around a captured step, and the consequences here:

- Both model runners pass the batch's adapters before the forward pass and outside of a capture:
  `v1/worker/gpu_model_runner.py`, `_prepare_inputs`, and `v1/worker/gpu/model_runner.py`,
  `execute_model`; for dummy runs `v1/worker/lora_model_runner_mixin.py`,
  `maybe_select_dummy_loras`, in the second runner through `v1/worker/gpu/lora_utils.py`,
  `create_lora_capture_hook`.
- They pass the scheduled tokens only, and a graph runs more (`v1/cudagraph_dispatcher.py`,
  `_create_padded_batch_descriptor`; `v1/worker/gpu/cudagraph_utils.py`, `dispatch`). So
  `token_mask` stays 0 beyond a step's tokens, and no tile names a token beyond them.
- Graphs are captured with dummy adapters, for which `plan` gets base tokens only: run() launches
  then, because steps with masks replay the recording. With `cudagraph_specialize_lora` (the
  default), and always in the second runner, steps without any adapter have their own graphs,
  captured without dummies (`get_lora_capture_cases`, `CudagraphDispatcher._get_lora_cases`):
  `idle` precedes those, and run() records nothing.
- A step in place also replays graphs with launches, because its batch has adapters: `idle` has
  cleared the buffers, and the programs end at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from bmt_server.ipc.mask_layout import Layout
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels.costs import GPU
from bmt_server.worker.kernels.triton import delta, tiles, weights
from bmt_server.worker.kernels.triton.arena import Arena, DeviceMask, on_host
from bmt_server.worker.resident_mask import ResidentMask, load_mask

# Least tokens of a step that has tiles: with fewer, the second launch costs what tiles save.
_TILES_FROM = 16
# Tokens of the tiles of one launch; bounds the copies of x, 16 MiB for 4,096 columns in bf16.
_COPIED_TOKENS = 2048


class KernelInputError(RuntimeError):
    """The kernel does not support the gates or a step; the message names value and limit."""


class _Launch(NamedTuple):
    """A launch of `correct`, and one of `correct_tiles` if it has tiles."""

    tokens: int  # tokens corrected one by one
    size: int  # of the tiles, 0 without any
    first: int  # tile
    tiles: int  # bound on their number; programs read the real one


class TritonKernel:
    """`masked_delta.Kernel` for one model's gates on one GPU, used by the worker's one thread.

    memory_bytes: reserved for masks at construction; max_tokens: bound on a step's tokens, padding
    included; graph_tokens: bound on the tokens of a step that a CUDA graph runs, 0 without graphs;
    group: False corrects each token by itself, so its result is the same bits in every batch.
    Raises KernelInputError for gates of several dtypes or column widths, MaskStoreError if the
    memory does not fit.
    """

    name = "triton"
    description = "one or two launches per layer, recorded by CUDA graphs"
    costs = GPU

    def __init__(
        self,
        gates: Sequence[GateLayer],
        *,
        memory_bytes: int = 1 << 30,
        max_tokens: int = 8192,
        graph_tokens: int = 0,
        group: bool = True,
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
        self._graph_tokens, self._group = graph_tokens, group
        self._token_mask = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        # Content of token_mask after all enqueued work; zeros from _used on.
        self._written, self._used = np.zeros(max_tokens, np.int64), 0
        most = max(tiles.most_tiles(max_tokens, s) * tiles.words(s) for s in tiles.LEAST)
        self._table = torch.zeros(1 + most, dtype=torch.int64, device=device)
        self._table_written = np.zeros(1 + most, np.int64)
        self._copied = torch.empty(_COPIED_TOKENS * widest, dtype=dtype, device=device)
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
        # Launches of a step outside of graphs, or the launches that a graph records for any step.
        self._launches: list[_Launch] = []
        self._for_graphs = False
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
        self._for_graphs = tokens <= self._graph_tokens
        prompts = bool(((run_mask != 0) & (lengths >= tiles.LARGE)).any())
        size = tiles.LARGE if prompts and not self._for_graphs else tiles.SMALL
        if self._group and tokens >= _TILES_FROM:
            cut, alone = tiles.cut(starts, lengths, run_mask, size)
        else:
            cut, alone = tiles.NONE, np.repeat(run_mask, lengths)
        # Up to the last token that has a mask and no tile: vLLM orders the tokens of prompts after
        # those that decode.
        until = int(np.flatnonzero(alone)[-1]) + 1 if alone.any() else 0
        self._launches = list(_launches(until, size, len(cut)))
        self._write(alone)
        self._write_table(cut)

    def idle(self) -> None:
        self._for_graphs, self._launches, self._masks = False, [], []
        self._beyond_graphs = 0
        self._write(np.zeros(0, np.int64))
        self._write_table(tiles.NONE)

    def run(self, layer: int, y: torch.Tensor, x: torch.Tensor) -> None:
        if self._beyond_graphs and _captures(y.device):
            raise KernelInputError(
                f"a CUDA graph of {self._beyond_graphs} tokens is captured, and masks were "
                f"prepared for at most {self._graph_tokens}: its steps would answer as the base; "
                "set --max-cudagraph-capture-size to the largest size"
            )
        if not self._for_graphs and not self._launches:
            return
        if {y.dtype, x.dtype} != {self._dtype} or (y.stride(1), x.stride(1)) != (1, 1):
            raise KernelInputError(
                f"the gates are {self._dtype} with contiguous rows; y is {y.dtype} {y.stride()} "
                f"and x {x.dtype} {x.stride()}"
            )
        tokens = x.shape[0]
        if tokens > self._written.size:
            raise KernelInputError(
                f"a step has {tokens} tokens, and the kernel supports at most {self._written.size}"
            )
        for launch in self._of_graph(tokens) if self._for_graphs else self._launches:
            self._correct(layer, y, x, launch)
            if launch.size:
                self._correct_tiles(layer, y, launch)

    def _of_graph(self, tokens: int) -> Iterator[_Launch]:
        """The launches of a graph of `tokens` tokens, the same for every step that replays it."""
        grouped = self._group and tokens >= _TILES_FROM
        count = tiles.most_tiles(tokens, tiles.SMALL) if grouped else 0
        return _launches(tokens, tiles.SMALL, count)

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
        tokens = min(delta.STAGE_TOKENS + 1, self._written.size)
        y = torch.zeros(tokens, 2 * r, dtype=self._dtype, device=device)
        x = torch.zeros(tokens, k, dtype=self._dtype, device=device)
        launches = [_Launch(1, 0, 0, 0), _Launch(tokens, 0, 0, 0)]  # with x staged, and without
        for launch in [*launches, *(_Launch(tokens, size, 0, 1) for size in tiles.LEAST)]:
            self._correct(0, y, x, launch)
            if launch.size:
                self._correct_tiles(0, y, launch)
        self.switch(empty, empty)
        self.idle()

    def _correct(self, layer: int, y: torch.Tensor, x: torch.Tensor, launch: _Launch) -> None:
        (r, k), (tokens, size, first, count) = self._gates[layer].shape, launch
        all_blocks = _ceil(r, delta.ROWS)
        blocks = max(tokens * all_blocks // delta.PROGRAMS, 1)
        across = _ceil(all_blocks, blocks)
        copies = min(count * _ceil(k, delta.COPY_COLUMNS), delta.COPY_PROGRAMS)
        delta.correct[tokens + _ceil(copies, across), across](
            y,
            x,
            self._token_mask,
            self._table,
            self._copied,
            layer,
            blocks,
            tokens,
            first,
            r,
            y.stride(0),
            x.stride(0),
            k,
            WIDE=self._wide,
            ROWS=delta.ROWS,
            WIDTH=delta.WIDTH,
            STAGE=0 if size else delta.stage(tokens, k),
            TILE=size,
            AT_ONCE=_at_once(size),
            COLUMNS=delta.COPY_COLUMNS,
            num_warps=delta.WARPS,
        )

    def _correct_tiles(self, layer: int, y: torch.Tensor, launch: _Launch) -> None:
        (r, k), (_, size, first, count) = self._gates[layer].shape, launch
        blocks = _ceil(r, delta.TILE_ROWS)
        delta.correct_tiles[blocks, min(count, _ceil(delta.TILE_PROGRAMS, blocks))](
            y,
            self._table,
            self._copied,
            layer,
            first,
            r,
            y.stride(0),
            k,
            WIDE=self._wide,
            ROWS=delta.TILE_ROWS,
            ZEROS=delta.TILE_ZEROS,
            TILE=size,
            AT_ONCE=_at_once(size),
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

    def _write_table(self, cut: tiles.Tiles) -> None:
        """Set the table to these tiles; records beyond them stay as they are, and are not read."""
        after = np.empty(1 + cut.records.size, np.int64)
        after[0], after[1:] = len(cut), cut.records.ravel()
        now = self._table_written[: after.size]
        if not np.array_equal(after, now):
            now[:] = after
            host = on_host(after, self._table.device)
            self._table[: after.size].copy_(host, non_blocking=True)


def _launches(tokens: int, size: int, count: int) -> Iterator[_Launch]:
    """Launches for tokens that are corrected one by one, and `count` tiles of `size` tokens."""
    if not count:
        if tokens:
            yield _Launch(tokens, 0, 0, 0)
        return
    for first in range(0, count, _at_once(size)):
        yield _Launch(tokens if not first else 0, size, first, min(_at_once(size), count - first))


def _at_once(size: int) -> int:
    """Tiles of one launch."""
    return _COPIED_TOKENS // size if size else 0


def _captures(device: torch.device) -> bool:
    """True while a CUDA graph is captured on the current stream."""
    return device.type == "cuda" and bool(torch.cuda.is_current_stream_capturing())


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
