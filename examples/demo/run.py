"""`make demo`: train two masks, serve them on one base model, and watch them answer.

Both masks are trained by SFT with the paper's learning rate, sharpness, regulariser and
initialisation. Steps, batch and calibration prompts are the demo's own, and fewer than the
paper's (400 steps a task, 2,048 prompts), so that it ends in minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Other libraries' bars would break into the demo's own display.
os.environ.setdefault("TQDM_DISABLE", "1")

import bmt_core
import yaml
from ask import accuracy, side_by_side, stream_while
from bmt_trainer import data
from bmt_trainer.evaluate import Score
from model import NAME, ROOT, ModelError, demo_model
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from server import Address, ServerError, serving

HERE = Path(__file__).resolve().parent
WORK = ROOT / ".bmt" / "demo"
TASKS = ("reverse", "sort")
WIDTH = 100

console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


class DemoError(Exception):
    """A step failed; the message says which."""


@dataclass(frozen=True)
class Task:
    """One of the demo's tasks: its settings and its held-out examples."""

    name: str
    settings: dict[str, Any]
    examples: list[data.Example]

    @property
    def mask(self) -> Path:
        return WORK / f"{self.name}.bmt"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reuse", action="store_true", help="keep masks of an earlier run")
    parser.add_argument("--record", type=Path, help="also write the output as an SVG picture")
    options = parser.parse_args()
    if options.record:
        console.record = True
    start = time.monotonic()
    try:
        run(options.reuse)
    except (DemoError, ModelError, ServerError, bmt_core.BmtError) as error:
        console.print(f"[red]demo:[/] {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("demo: interrupted")
        return 130
    console.print(
        f"\nDone in {_minutes(time.monotonic() - start)}. Next: [b]make serve[/], README.md"
    )
    if options.record:
        console.save_svg(str(options.record), title="make demo")
    return 0


def run(reuse: bool) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "0" if os.environ.get("BMT_DEMO_MODEL") else "1")
    WORK.mkdir(parents=True, exist_ok=True)
    with phase("The base model"):
        model = demo_model()
        console.print(f"  {model}")
    tasks = [_task(name) for name in TASKS]
    for task in tasks:
        with phase(f"Training the mask [b]{task.name}[/]"):
            train(task, model, reuse)
    # Its data is the demo's alone; each run begins with an empty registry.
    shutil.rmtree(WORK / "server", ignore_errors=True)
    with serving_phase(model) as address:
        with phase("Uploading with bmt-client"):
            for task in tasks:
                client(address, "upload", str(task.mask), "--name", task.name)
        with phase("One batch: the same prompts to the base and to both masks"):
            compare(address, tasks)
        with phase("Held-out accuracy, through the server"):
            measure(address, tasks)
        with phase("Uploading a mask anew while a stream of it runs"):
            replace(address, tasks[0])
        console.print("\n[b]Stopping the server[/]")
        stopping = time.monotonic()
    console.print(f"  stopped cleanly in {time.monotonic() - stopping:.1f} s")


def _task(name: str) -> Task:
    settings = yaml.safe_load((HERE / f"{name}.yaml").read_text())
    split = data.load(
        settings["dataset"], heldout=settings["heldout"], train=1, seed=settings.get("seed", 0)
    )
    return Task(name, settings, split.heldout)


def train(task: Task, model: str, reuse: bool) -> None:
    if reuse and task.mask.exists():
        console.print(f"  kept {task.mask}")
        return
    # An interrupted demo leaves an unfinished run; this one starts afresh.
    shutil.rmtree(task.mask.with_name(task.mask.name + ".run"), ignore_errors=True)
    command = [str(Path(sys.executable).with_name("bmt-train")), "sft"]
    command += ["--config", str(HERE / f"{task.name}.yaml"), "--model", model]
    command += ["--output", str(task.mask)]
    if subprocess.run(command, check=False).returncode:
        raise DemoError(f"training {task.name} failed; its output is above")


@contextmanager
def serving_phase(model: str) -> Iterator[Address]:
    start = time.monotonic()
    console.print("\n[b]Starting the server[/] with the embedded registry")
    with Progress(
        TextColumn("  {task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        line = progress.add_task("starting", total=None)
        said: set[str] = set()

        def tick(what: str) -> None:
            progress.update(line, description=what)
            if not console.is_terminal and what not in said:
                console.print(f"  {what}")
                said.add(what)

        manager = serving(model, NAME, WORK / "server", tick)
        address = manager.__enter__()
    try:
        console.print(f"  ready at {address.url} after {time.monotonic() - start:.0f} s")
        yield address
    except BaseException:
        if not manager.__exit__(*sys.exc_info()):
            raise
    else:
        manager.__exit__(None, None, None)


def client(address: Address, *arguments: str) -> None:
    """Run bmt-client against the demo's server."""
    command = [str(Path(sys.executable).with_name("bmt-client")), *arguments]
    environment = {**os.environ, "BMT_URL": address.url, "BMT_API_KEY": address.key}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"bmt-client {arguments[0]} failed: {done.stderr.strip()}")
    for line in (done.stdout + done.stderr).splitlines():
        console.print(f"  {line}", markup=False, overflow="ellipsis", no_wrap=True)


def compare(address: Address, tasks: list[Task]) -> None:
    models = [NAME, *(t.name for t in tasks)]
    examples = [t.examples[i] for t in tasks for i in range(2)]
    rows = side_by_side(address, models, examples)
    table = Table(show_lines=True)
    for heading in ("prompt", "base", *(f"mask {t.name}" for t in tasks)):
        table.add_column(heading, overflow="fold", ratio=1)
    for example, answers in zip(examples, rows, strict=True):
        cells = []
        for text, _ in answers:
            right = text.strip() == example.answer
            short = text.strip().replace("\n", " ")
            short = short if len(short) <= 90 else short[:89] + "…"
            cells.append(f"[green]{short}[/]" if right else short.replace("[", r"\["))
        table.add_row(str(example.prompt[-1]["content"]), *cells)
    console.print(table)
    answered = dict(zip(models, (model for _, model in rows[0]), strict=True))
    for name, version in answered.items():
        console.print(f"  asked for {name}: answered by [cyan]{version}[/]")


def measure(address: Address, tasks: list[Task]) -> None:
    table = Table()
    for heading in ("task", "", "trainer", "server", "n"):
        table.add_column(
            heading, justify="right" if heading in ("trainer", "server", "n") else "left"
        )
    with Progress(
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        for task in tasks:
            scores = bmt_core.inspect(task.mask.read_bytes()).metadata["scores"]
            for row, model in (("base", NAME), ("init", None), ("mask", task.name)):
                served = "—"
                if model is not None:
                    line = progress.add_task(f"{task.name} under {row}", total=len(task.examples))
                    score = accuracy(address, model, task.examples, _advance(progress, line))
                    served = _percent(score)
                table.add_row(
                    task.name if row == "base" else "",
                    {"base": "base", "init": "untrained mask (Wanda)", "mask": "[b]mask[/]"}[row],
                    f"{100 * scores[row]['accuracy']:.1f} %",
                    served,
                    str(len(task.examples)),
                )
    console.print(table)


def _advance(progress: Progress, line: Any) -> Callable[[int], None]:
    return lambda n: progress.advance(line, n)


def _percent(score: Score) -> str:
    return f"{100 * score.accuracy:.1f} %"


def replace(address: Address, task: Task) -> None:
    """Publish a changed mask while an answer streams; the answer keeps its version."""
    mask = bmt_core.load(task.mask)
    # The same mask without the zeros of its first layer: another version, to be told apart.
    first = mask.tensors[0]
    changed = bmt_core.Mask(
        mask.base,
        (bmt_core.TensorMask(first.name, first.shape, first.positions[:0]), *mask.tensors[1:]),
        {"note": "the demo's changed version"},
    )
    path = WORK / f"{task.name}-changed.bmt"
    bmt_core.save(changed, path)
    seen, pieces = stream_while(
        address,
        task.name,
        "Tell me about lists.",
        10,
        lambda: client(address, "upload", str(path), "--name", task.name),
    )
    old, new = f"{task.name}@{mask.digest[:12]}", f"{task.name}@{changed.digest[:12]}"
    after = side_by_side(address, [task.name], task.examples[:1])[0][0][1]
    console.print(f"  the stream of {pieces} pieces was answered by {', '.join(sorted(seen))}")
    console.print(f"  the next request was answered by {after}")
    if seen != {old} or after != new:
        raise DemoError(f"expected the stream from {old} and the next answer from {new}")


@contextmanager
def phase(title: str) -> Iterator[None]:
    start = time.monotonic()
    console.print(f"\n[b]{title}[/]")
    yield
    console.print(f"  [dim]{_minutes(time.monotonic() - start)}[/]")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    sys.exit(main())
