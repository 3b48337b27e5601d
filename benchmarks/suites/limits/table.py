"""The limit next to each composition: what the machine must do, and the share that was reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness import inputs
from benchmarks.harness.environment import WORK, dtype
from benchmarks.harness.stats import median
from benchmarks.processes.engine import Work
from benchmarks.report.results import Table
from benchmarks.suites.limits.step import Decoder, Rates, mask_bytes, ratio_limit
from benchmarks.suites.matchups import MASKS, SEQUENCES, Contest

Samples = Mapping[str, Sequence[float]]


def of_slices(
    model: Path,
    wanted: Sequence[Contest],
    found: Mapping[str, Sequence[Samples]],
    works: Mapping[str, Work],
    rates: Rates,
) -> Table:
    """A row for each composition, masked or not; LoRA's own bytes are not counted.

    found: seconds of slices by the contest's id, one entry a set of processes.
    """
    decoder = Decoder.of(model, dtype())
    folder = WORK / "inputs" / "masks"
    size = {
        sparsity: mask_bytes(inputs.masks(model, folder, range(1), sparsity)[0], decoder.item_bytes)
        for sparsity in (inputs.SPARSITY, inputs.SPARSITY_SFT)
    }
    rows = []
    for contest in wanted:
        work = works[contest.kind]
        bare = median([t for s in found[contest.id] for t in s["bare"]])
        other = median([t for s in found[contest.id] for t in s["other"]])
        least = decoder.seconds(work, rates)
        used = [a for a in contest.adapters if a is not None] if contest.engine == MASKS else []
        each = size[inputs.SPARSITY_SFT if used and min(used) >= SEQUENCES else inputs.SPARSITY]
        limit = ratio_limit(bare, work, len(used), each, rates)
        rows.append(
            (
                contest.what,
                f"{1000 * least:.1f}",
                f"{1000 * other:.1f}",
                f"{least / other:.2f}",
                f"{len(used) * each / 1e6:.2f}" if used else "",
                f"{limit:.3f}" if used else "",
                f"{bare / other / limit:.3f}" if used else "",
            )
        )
    return Table(
        title="Next to the limit of the machine",
        header=(
            *(
                "composition",
                "least time of a slice, ms",
                "taken, ms",
                "share of the model's limit",
            ),
            *("masks, MB a step", "highest ratio over bare", "share of that"),
        ),
        rows=rows,
        note=f"Measured before and after: {rates.bytes_per_s / 1e9:.1f} GB/s read, "
        f"{rates.operations_per_s / 1e12:.2f} Tflop/s of large products. The least time reads "
        "weights, keys and values once a step, and multiplies by each weight once a token; "
        "the highest ratio has the bare engine's time as it was, and each mask of a step read once "
        "from memory after it. A machine whose caches hold the masks can be above that.",
    )
