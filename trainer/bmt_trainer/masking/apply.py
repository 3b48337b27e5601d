"""Masks without bmt-server: applied to a loaded model, or written as a plain checkpoint."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from bmt_core import BaseMismatch, CheckpointError, Mask, TensorMask, fingerprint
from bmt_core.config import arithmetic, config_warning
from bmt_core.gates.rows import Rows
from transformers import PreTrainedModel

from bmt_trainer.checkpoint_files import check_unquantized, parts_of
from bmt_trainer.errors import ModelError, UnknownBase
from bmt_trainer.masking.experts import place_in_stack
from bmt_trainer.masking.new_folder import check_place, new_folder, sync
from bmt_trainer.masking.stored_names import stored_names
from bmt_trainer.models import checkpoint_folder

# Bytes per element of the floating-point dtypes whose zero is all-zero bytes, by safetensors name.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
# Elements that are copied at once.
_ELEMENTS = 1 << 22
# Entries that the line on what is left out names.
_NAMED = 8


@torch.no_grad()
def apply(mask: Mask, model: PreTrainedModel, *, base_fingerprint: str | None = None) -> None:
    """Zero the mask's positions in the weights of `model`, in place.

    base_fingerprint: `bmt_core.fingerprint` of the checkpoint that `model` was loaded from; by
    default of the folder or Hub model in `model.name_or_path`. Raises BaseMismatch if the mask is
    for another base or a tensor that the model lacks, and UnknownBase if `name_or_path` is empty;
    the model is then unchanged.
    """
    if base_fingerprint is None:
        if not model.name_or_path:
            raise UnknownBase(
                "model.name_or_path is empty, so the checkpoint is unknown; pass "
                "base_fingerprint=bmt_core.fingerprint(folder)"
            )
        base_fingerprint = fingerprint(checkpoint_folder(model.name_or_path))
    check_base(mask, base_fingerprint)
    parameters = dict(model.named_parameters())
    # By the checkpoint's names.
    loaded_as = {
        s: n for n, s in stored_names(model, (place_of(t)[0] for t in mask.tensors)).items()
    }
    places = {}
    for tensor in mask.tensors:
        name, _ = place_of(tensor)
        loaded = loaded_as.get(name, name)
        weight, first = parameters.get(loaded), place_of(tensor)[1]
        if weight is None and (stack := place_in_stack(loaded, parameters)) is not None:
            weight, first = stack
            own = (weight.shape[1] // 2, weight.shape[2])
            check_shape(tensor, own)
        else:
            check_shape(tensor, None if weight is None else tuple(weight.shape))
        places[tensor.name] = weight, first
    for tensor in mask.tensors:
        weight, first = places[tensor.name]
        assert weight is not None
        positions = torch.from_numpy(tensor.positions.astype(np.int64) + first)
        weight.data.view(-1).index_fill_(0, positions.to(weight.device), 0)


def write_checkpoint(
    mask: Mask,
    model_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    chat_template: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Copy a checkpoint to `out_dir` with the mask's positions zeroed; returns `out_dir`.

    Copied are the weights that engines load and what belongs to them (`checkpoint_files`); say:
    shows a line of what is left out, and one of a `config.json` that is not the training's. The
    bytes are zeroed on the way: that works for any sharding and floating-point dtype, loads no
    tensor, and leaves everything else unchanged, except for the chat template if one is given. The
    folder is complete or absent, however the call ends.

    Raises BaseMismatch, CheckpointError, ModelError, QuantizedModel, and OutputError for an
    `out_dir` that is not empty, in the model, full, or written by another process.
    """
    source, target = Path(model_dir), Path(out_dir)
    check_unquantized(source)
    parts = parts_of(source)
    place = check_place(target, source)
    check_base(mask, fingerprint(source))
    if (warning := config_warning(mask.metadata, arithmetic(source))) is not None:
        say(warning)
    remaining = {t.name: t for t in mask.tensors}
    zeros = {name: _zeros(source / name, remaining) for name in parts.weights}
    if remaining:
        check_shape(next(iter(remaining.values())), None)
    names = (*parts.weights, *parts.others)
    size = sum((source / name).stat().st_size for name in names)
    # Complete or absent: a partly masked model would answer without an error.
    with new_folder(target, place, size) as work:
        for name in names:
            _copy(source / name, work / name, zeros.get(name, ()))
        if chat_template is not None:
            _write_template(work, chat_template)
    if parts.left_out:
        some = ", ".join(parts.left_out[:_NAMED])
        more = len(parts.left_out) - _NAMED
        say(
            f"left out: {some}{f' and {more} more' if more > 0 else ''}; a masked checkpoint has "
            "the weights that engines load, configuration, tokenizer, templates and code"
        )
    return target


def _write_template(folder: Path, template: str) -> None:
    """Make `template` the only chat template of a checkpoint.

    transformers reads `chat_template.jinja`, next to it others by name, and before those files
    existed an entry of `tokenizer_config.json` (5.19, tokenization_utils_base.py).
    """
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    (folder / "chat_template.json").unlink(missing_ok=True)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    config = folder / "tokenizer_config.json"
    if config.is_file():
        entries = json.loads(config.read_text(encoding="utf-8"))
        if entries.pop("chat_template", None) is not None:
            config.unlink()
            config.write_text(json.dumps(entries, indent=2, ensure_ascii=False), encoding="utf-8")


@dataclass(frozen=True)
class _Zeros:
    """Elements of one tensor to zero: its first byte in the file, `size` bytes each."""

    start: int
    numel: int
    size: int
    positions: np.ndarray  # flat, ascending


def _zeros(file: Path, remaining: dict[str, TensorMask]) -> list[_Zeros]:
    """The zeros of the tensors that `file` holds, by place; removes those from `remaining`."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    found = []
    for tensor in [t for t in remaining.values() if place_of(t)[0] in header]:
        name, first = place_of(tensor)
        del remaining[tensor.name]
        entry = header[name]
        check_shape(tensor, tuple(entry["shape"]))
        size = _BYTES.get(entry["dtype"])
        if size is None:
            raise CheckpointError(
                f"{name} is stored as {entry['dtype']}, but masks apply to {', '.join(_BYTES)}; "
                "use the unquantized checkpoint",
                field=name,
                value=entry["dtype"],
            )
        start = 8 + length + entry["data_offsets"][0] + first * size
        found.append(_Zeros(start, tensor.numel, size, tensor.positions))
    return sorted(found, key=lambda zeros: zeros.start)


def _copy(file: Path, to: Path, zeros: Iterable[_Zeros]) -> None:
    """Copy a file's bytes, with zeros where they are wanted; symbolic links are followed.

    Not by a memory map: on a full disk a write to one ends the process.
    """
    to.parent.mkdir(exist_ok=True)
    try:
        stream = file.open("rb")
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror})") from None
    with stream, to.open("wb") as out:
        for tensor in zeros:
            _pass(stream, out, tensor.start - stream.tell())
            for at in range(0, tensor.numel, _ELEMENTS):
                count = min(_ELEMENTS, tensor.numel - at)
                data = np.frombuffer(stream.read(count * tensor.size), f"V{tensor.size}").copy()
                if len(data) != count:
                    raise ModelError(f"{file} has changed while it was copied; try again")
                first, last = np.searchsorted(tensor.positions, [at, at + count])
                data[tensor.positions[first:last] - at] = np.zeros((), data.dtype)
                out.write(data.tobytes())
        shutil.copyfileobj(stream, out, _ELEMENTS)
    sync(to)


def _pass(stream: BinaryIO, out: BinaryIO, size: int) -> None:
    """Copy `size` bytes."""
    for at in range(0, size, _ELEMENTS):
        out.write(stream.read(min(_ELEMENTS, size - at)))


def check_base(mask: Mask, actual: str) -> None:
    if mask.base.fingerprint != actual:
        raise BaseMismatch(
            f"the mask was made for {mask.base.model_id} with fingerprint "
            f"{mask.base.fingerprint[:12]}…, but this checkpoint has {actual[:12]}…; use the base "
            "that the mask was trained on",
            field="base.fingerprint",
            value=actual,
            bound=mask.base.fingerprint,
        )


def place_of(tensor: TensorMask) -> tuple[str, int]:
    """The checkpoint's tensor that holds a mask's tensor, and its first element there."""
    rows = Rows.parse(tensor.name)
    return (tensor.name, 0) if rows is None else (rows.tensor, rows.first * tensor.shape[1])


def check_shape(tensor: TensorMask, actual: tuple[int, ...] | None) -> None:
    rows = Rows.parse(tensor.name)
    if rows is not None and actual is not None:
        fits = len(actual) >= 2 and actual[-1] == tensor.shape[1]
        fits = fits and rows.end <= math.prod(actual[:-1])
    else:
        fits = actual == tensor.shape
    if not fits:
        raise BaseMismatch(
            f"{tensor.name} is {actual or 'absent'} in the model and {tensor.shape} in the mask; "
            "use the base that the mask was trained on",
            field="tensors",
            value=actual,
            bound=tensor.shape,
        )
