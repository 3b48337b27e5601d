"""`python -m benchmarks PART…`: run parts, keep what they found, write the page.

Exit code 1 where a section failed; the others ran all the same, and what they found is kept.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import registry
from benchmarks.harness.environment import ROOT, WORK, commit, provenance
from benchmarks.harness.profiles import FULL, QUICK
from benchmarks.harness.resume import Journal
from benchmarks.harness.section import Context
from benchmarks.report import page
from benchmarks.report.results import folder, keep


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    # As Ctrl-C, so that servers and engines end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    scale = QUICK if options.quick else FULL
    identity = {"commit": commit(), "scale": scale.digest(), "model": str(options.model or "demo")}
    target = folder(options.quick)
    failed: list[str] = []
    start = time.monotonic()

    def say(text: str, at: str = "") -> None:
        print(f"[{(time.monotonic() - start) / 60:5.1f} min] {at}{text}", flush=True)

    for part in options.parts:
        for name, section in registry.SECTIONS[part].items():
            if options.only and name not in options.only:
                continue
            say(f"{part}: {name}")
            where = WORK / "journal" / scale.name / part / name
            context = Context(
                part=part,
                section=name,
                scale=scale,
                journal=Journal(where, identity, options.resume),
                given_model=options.model,
                say=partial(say, at=f"{part}: {name}: "),
            )
            found = _run(section, context)
            if "error" in found:
                failed.append(f"{part}: {name}")
                say(f"{part}: {name} FAILED\n{found['error']}")
            keep(part, {name: found}, target)
            page.write(target)
    _show(options.parts, target)
    print(f"{target.relative_to(ROOT)}/README.md, {(time.monotonic() - start) / 60:.1f} minutes")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _run(section: registry.Section, context: Context) -> dict[str, Any]:
    environment, start = provenance(), time.monotonic()
    try:
        found = asdict(section(context))
    except Exception as error:
        traceback.print_exc()
        # The page is public: nothing of this host's folders on it.
        text = f"{type(error).__name__}: {error}".replace(str(ROOT), ".")
        found = {"entries": [], "tables": [], "plots": [], "samples": {}, "error": text[:2000]}
    return {**found, "environment": environment, "seconds": round(time.monotonic() - start, 1)}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=["all", *registry.SECTIONS], metavar="PART")
    parser.add_argument("--only", action="append", default=[], metavar="SECTION")
    parser.add_argument("--quick", action="store_true", help="a little of each, to see it work")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run finished")
    parser.add_argument("--model", type=Path, help="checkpoint folder; default: the demo's model")
    options = parser.parse_args(arguments)
    if "all" in options.parts:
        options.parts = list(registry.SECTIONS)
    known = {s for part in options.parts for s in registry.SECTIONS[part]}
    if unknown := set(options.only) - known:
        parser.error(f"--only {', '.join(sorted(unknown))}: one of {', '.join(sorted(known))}")
    return options


def _show(names: list[str], target: Path) -> None:
    """Print the figures that have something to reach."""
    from benchmarks.report.results import REACH, read_raw, verdict

    for name in names:
        raw = read_raw(target / "raw" / f"{name}.json")
        for found in raw.get("sections", {}).values():
            for entry in found["entries"]:
                if entry["id"] in REACH:
                    value, bound = page.figure(entry["value"]), REACH[entry["id"]]
                    reached = verdict(entry["id"], entry["value"])
                    print(f"{entry['id']:28} {value:>10} {entry['unit']:24} {bound}: {reached}")


if __name__ == "__main__":
    sys.exit(main())
