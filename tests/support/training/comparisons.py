"""Results of comparisons that no training made."""

from __future__ import annotations

from typing import Any

from bmt_trainer.comparison.plan import Cell


def made_up(cell: Cell, right: str = "01") -> dict[str, Any]:
    """A result as `run_cell` returns it, with these answers."""
    return {
        **{"method": cell.method, "model": "tiny", "dataset": cell.dataset, "right": right},
        **{"trainer": cell.plan.trainer, "changes": dict(cell.changes), "size_bytes": 0},
        "settings": {"seed": cell.seed or 0},
        "score": {"exact": right.count("1"), "lenient": right.count("1"), "total": len(right)},
    }
