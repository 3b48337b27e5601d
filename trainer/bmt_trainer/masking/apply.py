"""Masks without bmt-server: applied to a loaded model, or written as a plain checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from bmt_core import BaseMismatch, CheckpointError, Mask, TensorMask, fingerprint
from transformers import PreTrainedModel

from bmt_trainer.checkpoint_files import check_unquantized
from bmt_trainer.errors import OutputError, UnknownBase
from bmt_trainer.models import checkpoint_folder

# Bytes per element of the floating-point dtypes whose zero is all-zero bytes, by safetensors name.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
# Left out of a masked checkpoint: copies of the unmasked weights in other formats. "consolidated"
# is Mistral's own layout, which vLLM prefers: it would serve the base instead of the mask.
_OTHER_WEIGHTS = (
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx*"),
    "consolidated*.safetensors*",
)


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
    _check_base(mask, base_fingerprint)
    parameters = dict(model.named_parameters())
    for tensor in mask.tensors:
        weight = parameters.get(tensor.name)
        _check_shape(tensor, None if weight is None else tuple(weight.shape))
    for tensor in mask.tensors:
        weight = parameters[tensor.name]
        positions = torch.from_numpy(tensor.positions.astype(np.int64)).to(weight.device)
        weight.data.view(-1).index_fill_(0, positions, 0)


def write_checkpoint(
    mask: Mask,
    model_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    chat_template: str | None = None,
) -> Path:
    """Copy a checkpoint's folder to `out_dir` with the mask's positions zeroed; returns `out_dir`.

    The bytes are zeroed in the copied safetensors files: that works for any sharding and
    floating-point dtype, loads no tensor, and leaves everything else unchanged, except for the
    chat template if one is given. Raises BaseMismatch, CheckpointError, QuantizedModel, and
    OutputError if `out_dir` exists and is not empty.
    """
    source, target = Path(model_dir), Path(out_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} exists and is not empty; choose another folder or remove it")
    check_unquantized(source)
    _check_base(mask, fingerprint(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Complete or absent: a partly masked model would answer without an error.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        work = Path(scratch) / "model"
        # Symbolic links are followed: a Hub snapshot consists of links into its blobs.
        skip = shutil.ignore_patterns(".git", ".cache", "*.lock", *_OTHER_WEIGHTS)
        shutil.copytree(source, work, ignore=skip)
        remaining = {t.name: t for t in mask.tensors}
        for file in sorted(work.glob("*.safetensors")):
            os.chmod(file, 0o644)
            _zero(file, remaining)
        if remaining:
            _check_shape(next(iter(remaining.values())), None)
        if chat_template is not None:
            _write_template(work, chat_template)
        if target.exists():
            target.rmdir()
        os.replace(work, target)
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


def _zero(file: Path, remaining: dict[str, TensorMask]) -> None:
    """Zero the tensors of `remaining` that `file` holds, and remove them from `remaining`."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    for name in sorted(remaining.keys() & header.keys()):
        tensor, entry = remaining.pop(name), header[name]
        _check_shape(tensor, tuple(entry["shape"]))
        size = _BYTES.get(entry["dtype"])
        if size is None:
            raise CheckpointError(
                f"{name} is stored as {entry['dtype']}, but masks apply to {', '.join(_BYTES)}; "
                "use the unquantized checkpoint",
                field=name,
                value=entry["dtype"],
            )
        data = np.memmap(
            file,
            dtype=f"V{size}",
            mode="r+",
            offset=8 + length + entry["data_offsets"][0],
            shape=(tensor.numel,),
        )
        data[tensor.positions] = np.zeros((), data.dtype)
        data.flush()


def _check_base(mask: Mask, actual: str) -> None:
    if mask.base.fingerprint != actual:
        raise BaseMismatch(
            f"the mask was made for {mask.base.model_id} with fingerprint "
            f"{mask.base.fingerprint[:12]}…, but this checkpoint has {actual[:12]}…; use the base "
            "that the mask was trained on",
            field="base.fingerprint",
            value=actual,
            bound=mask.base.fingerprint,
        )


def _check_shape(tensor: TensorMask, actual: tuple[int, ...] | None) -> None:
    if actual != tensor.shape:
        raise BaseMismatch(
            f"{tensor.name} is {actual or 'absent'} in the model and {tensor.shape} in the mask; "
            "use the base that the mask was trained on",
            field="tensors",
            value=actual,
            bound=tensor.shape,
        )
