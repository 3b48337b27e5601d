"""Commands on files: inspect and diff. Only `diff` of a REF needs a server."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated

import bmt_core
import typer
from rich.console import Console
from rich.text import Text

from bmt_client import Invalid
from bmt_client._files import decode, read_file

from .output import percent, print_facts, print_pairs, print_table, printable, short, size
from .session import Session, parse_ref, session


def inspect(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .bmt file.")],
    layers: Annotated[bool, typer.Option("--layers", help="Print a line for each tensor.")] = False,
) -> None:
    """Validate a file and print its contents (offline)."""
    run = session(context)
    data = read_file(file)
    mask = decode(data)
    header = bmt_core.inspect(data)
    bound = sum(_entropy_bytes(tensor.numel, tensor.zeros) for tensor in mask.tensors)
    value = {
        "file": str(file),
        "bytes": len(data),
        "file_digest": hashlib.sha256(data).hexdigest(),
        "digest": mask.digest,
        "format": header.version,
        "codec": header.codec,
        "base": {"model_id": mask.base.model_id, "fingerprint": mask.base.fingerprint},
        "zeros": mask.zeros,
        "weights": mask.numel,
        "sparsity": mask.sparsity,
        "entropy_bound_bytes": math.ceil(bound),
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "zeros": tensor.zeros,
                "sparsity": tensor.zeros / tensor.numel,
            }
            for tensor in mask.tensors
        ],
        "metadata": dict(mask.metadata),
    }

    def show(console: Console) -> None:
        ratio = f", {len(data) / bound:.2f}x the entropy bound ({size(round(bound))})"
        rows: list[tuple[str, str | Text]] = [
            ("file", Text.assemble((printable(str(file)), "bold"), ("  valid", "green"))),
            ("format", f"version {header.version}, codec {header.codec}"),
            ("digest", mask.digest),
            ("sha256", value["file_digest"]),  # type: ignore[list-item]
            ("base", f"{mask.base.model_id} ({short(mask.base.fingerprint)})"),
            ("tensors", _summary(mask)),
            ("zeros", f"{mask.zeros:,} of {mask.numel:,} ({percent(mask.sparsity)})"),
            ("size", size(len(data)) + (ratio if bound >= 1 else "")),
        ]
        print_facts(console, rows, mask.metadata)
        if layers:
            console.print()
            cells = [
                [t.name, "x".join(map(str, t.shape)), f"{t.zeros:,}", percent(t.zeros / t.numel)]
                for t in mask.tensors
            ]
            columns = ["TENSOR", "SHAPE", "ZEROS", "SPARSITY"]
            print_table(console, columns, cells, numbers=columns[2:])

    run.out.data(value, show)


def diff(
    context: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="A .bmt file or a REF on the server.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The mask to compare with.")],
    layers: Annotated[bool, typer.Option("--layers", help="Print a line for each tensor.")] = False,
) -> None:
    """Compare two masks, weight by weight."""
    run = session(context)
    mask_a, mask_b = _load(run, a), _load(run, b)
    try:
        difference = bmt_core.compare(mask_a, mask_b)
    except bmt_core.BmtError as error:
        raise Invalid(str(error), code=error.code) from error
    value = {
        "a": {"source": a, "digest": mask_a.digest, "zeros": mask_a.zeros},
        "b": {"source": b, "digest": mask_b.digest, "zeros": mask_b.zeros},
        **_counts(difference.total),
        "tensors": {name: _counts(part) for name, part in difference.tensors.items()},
    }

    def show(console: Console) -> None:
        total = difference.total
        of = max(total.only_a + total.only_b + total.both, 1)
        print_pairs(
            console,
            [
                ("A", f"{a}  {short(mask_a.digest)}  {mask_a.zeros:,} zeros"),
                ("B", f"{b}  {short(mask_b.digest)}  {mask_b.zeros:,} zeros"),
                ("only A", f"{total.only_a:,} ({percent(total.only_a / of)} of their union)"),
                ("only B", f"{total.only_b:,} ({percent(total.only_b / of)})"),
                ("both", f"{total.both:,} ({percent(total.both / of)})"),
                ("Jaccard", f"{total.jaccard:.4f}"),
            ],
        )
        if layers:
            console.print()
            cells = [
                [name, f"{t.only_a:,}", f"{t.only_b:,}", f"{t.both:,}", f"{t.jaccard:.4f}"]
                for name, t in difference.tensors.items()
            ]
            columns = ["TENSOR", "ONLY A", "ONLY B", "BOTH", "JACCARD"]
            print_table(console, columns, cells, numbers=columns[1:])

    run.out.data(value, show)


def _load(run: Session, source: str) -> bmt_core.Mask:
    """Load a mask from a file, or from the server if `source` is a REF and no such file exists."""
    path = Path(source)
    if path.exists() or path.suffix == ".bmt" or path.name != source:
        return decode(read_file(path))
    with run.client() as client, run.out.progress(source) as progress:
        return decode(client.read(parse_ref(source), progress=progress))


def _counts(part: bmt_core.Overlap) -> dict[str, float]:
    return {
        "only_a": part.only_a,
        "only_b": part.only_b,
        "both": part.both,
        "jaccard": part.jaccard,
    }


def _summary(mask: bmt_core.Mask) -> str:
    """`30 of 1536x576, model.layers.0.… to model.layers.29.…`."""
    shapes: dict[tuple[int, int], int] = {}
    for tensor in mask.tensors:
        shapes[tensor.shape] = shapes.get(tensor.shape, 0) + 1
    counts = ", ".join(f"{count} of {r}x{c}" for (r, c), count in shapes.items())
    return f"{counts}: {mask.tensors[0].name} …" if mask.tensors else "none"


def _entropy_bytes(numel: int, zeros: int) -> float:
    """log2 of the number of masks with so many zeros, in bytes: the least that a code needs."""
    ways = math.lgamma(numel + 1) - math.lgamma(zeros + 1) - math.lgamma(numel - zeros + 1)
    return ways / math.log(2) / 8
