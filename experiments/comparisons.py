"""Comparisons of the paper's Table 3 and Figures 2 and 3, on a small machine.

Each run's result is a file next to the figures, so that an interrupted comparison resumes, also on
another machine. Delete these files to repeat the runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmt_trainer.comparison import plan as plans
from bmt_trainer.comparison import report, tables
from bmt_trainer.comparison.queue import within
from bmt_trainer.comparison.runner import run
from bmt_trainer.evaluation.intervals import wilson

from benchmarks.harness.environment import ROOT, WORK, demo_model
from benchmarks.report.results import LATEST
from experiments.record import Figure, gain, keep, percent

Result = dict[str, Any]

#: Recipes in recipes/small by the name in the ids of `forgetting`.
FORGETTING = {
    "sft": "forgetting-sft",
    "letters": "forgetting-letters",
    "letters_plain": "forgetting-letters-plain",
    "letters_sdft": "forgetting-letters-sdft",
    "grpo": "grpo-compared",
}


def table3() -> None:
    """SFT on two subjects of MMLU-Pro and two subtasks of BBEH by every method."""
    command = "make paper-table3 PAPER_DATA=FOLDER"
    folder = Path(os.environ.get("PAPER_DATA", ""))
    missing = [n for n in ("mmlu_pro/test.jsonl.gz", "bbeh") if not (folder / n).exists()]
    if not str(folder) or missing:
        raise SystemExit(
            "PAPER_DATA=FOLDER must hold mmlu_pro/test.jsonl.gz (TIGER-AI-Lab/MMLU-Pro) and bbeh/ "
            f"(bbeh_TASK.json of google-deepmind/bbeh); missing: {', '.join(missing) or 'all'}"
        )
    path = ROOT / "recipes" / "small" / "table3.yaml"
    recipe = plans.read(path, {"output": "unused", "model": "unused"})
    datasets = [within(name, folder) for name in recipe.datasets]
    results = compare("table3", datasets=datasets)
    figures = []
    for row in tables.rows(results):
        if row.accuracy is None or row.interval is None:
            continue
        name = f"table3_{_plain(row.method)}"
        figures += [
            percent(f"{name}_accuracy", row.accuracy, row.interval, row.total, command),
            Figure(id=f"{name}_size_mib", value=row.size, n=row.datasets, command=command),
        ]
    keep(figures)
    _report("table3", title="Table 3 in small")


def forgetting() -> None:
    """KL divergence from the base and another skill during training by SFT, SDFT and GRPO."""
    for kind, recipe in FORGETTING.items():
        _forgotten(kind, compare(recipe))
    _report_grpo()
    _report(FORGETTING["sft"], title="Forgetting in small: SFT")
    letters = (FORGETTING["letters"], FORGETTING["letters_sdft"])
    _report(*letters, title="Forgetting in small: counting letters")


def geometry() -> None:
    """Effective rank, spectrum drift and principal-weight overlap after the same GRPO runs."""
    command = "make paper-geometry"
    figures = []
    for result in compare(FORGETTING["grpo"]):
        for part in ("gate", "all"):
            means = result["geometry"][part]
            for key in ("effective_rank", "spectrum_drift", "overlap"):
                if means[key] is not None:
                    figures.append(
                        Figure(
                            id=f"geometry_{_plain(result['method'])}_{part}_{key}",
                            value=float(f"{means[key]:.5g}"),
                            interval=None,
                            n=means["updated"],
                            command=command,
                        )
                    )
            print(result["method"], part, means)
    keep(figures)
    _report_grpo()


def compare(recipe: str, **changes: Any) -> list[Result]:
    """Run the parts of `recipes/small/RECIPE.yaml` that have no result yet."""
    path = ROOT / "recipes" / "small" / f"{recipe}.yaml"
    output = LATEST / "paper" / recipe
    results = run(plans.read(path, {"output": output, "model": str(demo_model()), **changes}))
    for row in tables.rows(results):
        print(" | ".join(row.cells()))
    return results


def _forgotten(kind: str, results: Sequence[Result]) -> None:
    """Print and keep the change of the other skill by the end of each run of a comparison."""
    command = "make paper-forgetting"
    # Before its first step a baseline is the base in its own arithmetic. A mask already deletes
    # weights then, and is compared with its own start only if no baseline was run.
    starts = [r["track"][0] for r in results if not r["track"][0]["zeros"]]
    figures = []
    for result in results:
        start, last = result["track"][0], result["track"][-1]
        first = starts[0] if starts and start["zeros"] else start
        name = f"forgetting_{kind}_{_plain(result['method'])}{_changes(result)}"
        points, interval = gain(_share(first), _share(last))
        figures += [
            Figure(
                id=f"{name}_kl", value=last["kl_token"], n=len(result["track"]), command=command
            ),
            Figure(
                id=f"{name}_kept_points",
                value=points,
                interval=interval,
                n=int(last["n"]),
                command=command,
            ),
        ]
        print(
            f"{kind} {result['method']} {result['changes']}: KL {last['kl_token']:.4f} nats a "
            f"token, other skill {points:+.1f} points [{interval[0]:.1f}, {interval[1]:.1f}]"
        )
    keep(figures)


def _report(*recipes: str, title: str) -> None:
    """Write the report of one or several comparisons; its plots go next to the figures."""
    target, name = LATEST / "paper", recipes[0]
    folders = [target / recipe for recipe in recipes]
    page = report.write(folders, WORK / "paper" / name / "report", title)
    for picture in page.parent.glob("*.png"):
        (target / f"{name}-{picture.name}").write_bytes(picture.read_bytes())
    print(page)


def _report_grpo() -> None:
    _report(FORGETTING["grpo"], title="GRPO in small, by method")


def _share(row: Mapping[str, float]) -> dict[str, Any]:
    right, total = round(row["retention_lenient"] * row["n"]), int(row["n"])
    return {"accuracy": right / total, "interval95": wilson(right, total)}


def _plain(method: str) -> str:
    return method.replace("-", "_").replace(".", "_").replace("@", "_at_")


def _changes(result: Mapping[str, Any]) -> str:
    values = [
        str(value).replace("-", "_").replace(".", "_") for value in result["changes"].values()
    ]
    if seed := result["settings"].get("seed", 0):
        values.append(f"seed_{seed}")
    return "".join(f"_{value}" for value in values)


EXPERIMENTS: dict[str, Any] = {
    "table3": table3,
    "forgetting": forgetting,
    "geometry": geometry,
}
