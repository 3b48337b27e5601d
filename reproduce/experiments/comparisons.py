"""Figures and reports of the comparisons in `reproduce/small.yaml`, from their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bmt_trainer.comparison import report, tables
from bmt_trainer.evaluation.intervals import OverRuns, over_runs, wilson

from benchmarks.harness.environment import WORK
from benchmarks.report.results import LATEST
from reproduce.experiments.record import Figure, gain, keep, percent

Result = dict[str, Any]

_LETTERS = ("forgetting-letters", "forgetting-letters-sdft")
#: Title of each comparison's page, and the folders of the results that it shows.
_PAGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "small-table3": ("Table 3 in small", ("table3",)),
    "small-grpo": ("GRPO in small, by method", ("grpo-compared",)),
    "small-forgetting-sft": ("Forgetting in small: SFT", ("forgetting-sft",)),
    "small-forgetting-letters": ("Forgetting in small: counting letters", _LETTERS),
    "small-forgetting-letters-sdft": ("Forgetting in small: counting letters", _LETTERS),
}


def figures(name: str, results: Sequence[Result]) -> list[Figure]:
    """Figures of a comparison by its name; ids of one seed other than 0 end with it."""
    seeds: dict[int, list[Result]] = {}
    for result in results:
        seeds.setdefault(result["settings"].get("seed", 0), []).append(result)
    command = f"make reproduce NAME={name}"
    make = _FIGURES.get(name, ())
    made = [f for one in make for found in seeds.values() for f in one(found, command)]
    over_seeds = _OVER_SEEDS.get(name)
    return made if over_seeds is None else made + _means(over_seeds, results, command)


def finish(name: str, results: Sequence[Result]) -> None:
    """Print a finished comparison's table, keep its figures and write its report."""
    for row in tables.rows(results):
        print(" | ".join(row.cells()))
    made = figures(name, results)
    keep(made)
    for figure in made:
        print(f"{figure.id} {figure.entry['value']:g}")
    if name in _PAGES:
        title, recipes = _PAGES[name]
        folders = [LATEST / "paper" / recipe for recipe in recipes]
        page = report.write(
            [folder for folder in folders if any(folder.glob("*.json"))],
            WORK / "paper" / recipes[0] / "report",
            title,
        )
        for picture in page.parent.glob("*.png"):
            (LATEST / "paper" / f"{recipes[0]}-{picture.name}").write_bytes(picture.read_bytes())
        print(page)


def keep_so_far(name: str, results: Sequence[Result]) -> None:
    """Keep an unfinished comparison's means over seeds, which say of how many runs they are."""
    if name in _OVER_SEEDS:
        keep(_means(_OVER_SEEDS[name], results, f"make reproduce NAME={name}"))


def _means(kind: str, results: Sequence[Result], command: str) -> list[Figure]:
    """Means of each method over its seeds, with Student's intervals over the runs.

    Of the accuracy, of the gain over a base on the same examples, of a mask's zeros, and of its KL
    divergence from the base if that was tracked.
    """
    made = []
    for row in tables.rows(results):
        if len(row.by_seed) < 2 or row.accuracy is None or row.interval is None:
            continue
        changed = "".join(f"_{_plain(str(v))}" for v in row.results[0]["changes"].values())
        name, runs = f"{kind}_{_plain(row.method)}{changed}", len(row.by_seed)
        figures = [percent(f"{name}_over_seeds", row.accuracy, row.interval, runs, command)]
        means = {"zeros": [float(r["zeros"]) for r in row.results if "zeros" in r]}
        means["kl"] = [r["track"][-1]["kl_token"] for r in row.results if r.get("track")]
        found = {key: over_runs(values) for key, values in means.items() if len(values) == runs}
        if isinstance(row.against, OverRuns):
            found["gain_points"] = row.against
        for key, over in found.items():
            scale = 100 if key == "gain_points" else 1
            low, high = over.interval
            figures.append(
                Figure(
                    id=f"{name}_{key}_over_seeds",
                    value=scale * over.difference,
                    interval=(scale * low, scale * high),
                    n=runs,
                    command=command,
                )
            )
        made += [replace(figure, seeds=tuple(sorted(row.by_seed))) for figure in figures]
    return made


def _table3(results: Sequence[Result], command: str) -> list[Figure]:
    """Accuracy and size by method, over all data sets."""
    made = []
    seed = _seed(results[0])
    for row in tables.rows(results):
        if row.accuracy is None or row.interval is None:
            continue
        name, last = f"table3_{_plain(row.method)}", f"{command} PAPER_DATA=FOLDER"
        made += [
            percent(f"{name}_accuracy{seed}", row.accuracy, row.interval, row.total, last),
            Figure(id=f"{name}_size_mib{seed}", value=row.size, n=row.datasets, command=last),
        ]
    return made


def _geometry(results: Sequence[Result], command: str) -> list[Figure]:
    """Effective rank, spectrum drift and principal-weight overlap after the same GRPO runs."""
    made = []
    for result in results:
        for part in ("gate", "all") if "geometry" in result else ():  # it may have failed
            means = result["geometry"][part]
            for key in ("effective_rank", "spectrum_drift", "overlap"):
                if means[key] is None:
                    continue
                name = f"geometry_{_plain(result['method'])}_{part}_{key}{_seed(result)}"
                value, n = float(f"{means[key]:.5g}"), means["updated"]
                made.append(Figure(id=name, value=value, n=n, command=command))
    return made


def _forgetting(kind: str) -> Callable[[Sequence[Result], str], list[Figure]]:
    """KL divergence from the base, and the change of the other skill, by the end of each run."""

    def of(results: Sequence[Result], command: str) -> list[Figure]:
        # Before its first step a baseline is the base in its own arithmetic. A mask already deletes
        # weights then, and is compared with its own start only if no baseline was run.
        starts = [r["track"][0] for r in results if not r["track"][0]["closed_gates"]]
        made = []
        for result in results:
            start, last = result["track"][0], result["track"][-1]
            first = starts[0] if starts and start["closed_gates"] else start
            name = f"forgetting_{kind}_{_plain(result['method'])}{_changes(result)}"
            kl, rows = last["kl_token"], len(result["track"])
            made.append(Figure(id=f"{name}_kl", value=kl, n=rows, command=command))
            if "retention_lenient" not in last:  # its score failed
                continue
            points, interval = gain(_share(first), _share(last))
            kept, n = f"{name}_kept_points", int(last["n"])
            made.append(Figure(id=kept, value=points, interval=interval, n=n, command=command))
        return made

    return of


def _share(row: Mapping[str, float]) -> dict[str, Any]:
    right, total = round(row["retention_lenient"] * row["n"]), int(row["n"])
    return {"accuracy": right / total, "interval95": wilson(right, total)}


def _plain(text: str) -> str:
    return text.replace("-", "_").replace(".", "_").replace("@", "_at_")


def _changes(result: Mapping[str, Any]) -> str:
    values = [_plain(str(value)) for value in result["changes"].values()]
    return "".join(f"_{value}" for value in values) + _seed(result)


def _seed(result: Mapping[str, Any]) -> str:
    seed = result["settings"].get("seed", 0)
    return f"_seed_{seed}" if seed else ""


#: Comparisons whose figures are means over seeds too, and how the ids of these begin.
_OVER_SEEDS: Mapping[str, str] = {
    "small-sort": "sort",
    "small-sums": "sums",
    "small-sums-sdft": "sums_sdft",
    "small-start-places": "start_places",
    "small-start-mean": "start_mean",
    "small-start-lambda": "start_lambda",
}

_FIGURES: Mapping[str, tuple[Callable[[Sequence[Result], str], list[Figure]], ...]] = {
    "small-table3": (_table3,),
    "small-grpo": (_forgetting("grpo"), _geometry),
    "small-forgetting-sft": (_forgetting("sft"),),
    "small-forgetting-letters": (_forgetting("letters"),),
    "small-forgetting-letters-plain": (_forgetting("letters_plain"),),
    "small-forgetting-letters-sdft": (_forgetting("letters_sdft"),),
}
