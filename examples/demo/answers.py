"""The demo's last three parts: answers side by side, accuracy, and a mask replaced in use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import bmt_core
from ask import Answer, ask, batch, stream_around
from display import Display
from errors import DemoError
from processes import program, run
from rich.table import Table
from rich.text import Text
from serving import Address
from training import Task

# As long as a task's answers may get; of what the base says beyond, the table shows nothing.
TOKENS = 40
CELL = 90


def upload(show: Display, address: Address, path: Path, name: str) -> None:
    """`bmt-client upload`, its output shown. Raises DemoError."""
    command = [program("bmt-client"), "upload", str(path), "--name", name]
    where = {**os.environ, "BMT_URL": address.url, "BMT_API_KEY": address.key}
    done = run(command, env=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        raise DemoError(f"bmt-client upload {path.name} failed: {done.stderr.strip()}")
    for line in (done.stdout + done.stderr).splitlines():
        show.say(line)


def compare(show: Display, address: Address, base: str, tasks: list[Task]) -> None:
    """The same prompts to the base and to every mask, in one batch."""
    models = [base, *(t.name for t in tasks)]
    examples = [t.examples[i] for t in tasks for i in range(2)]
    answers = batch(address, [(m, e) for e in examples for m in models], TOKENS)
    table = Table(show_lines=True)
    for heading in ("prompt", "base", *(f"mask {t.name}" for t in tasks)):
        table.add_column(heading, overflow="fold", ratio=1)
    for at, example in enumerate(examples):
        row = answers[at * len(models) : (at + 1) * len(models)]
        cells = [_cell(answer, example.answer) for answer in row]
        table.add_row(Text(example.messages[-1]["content"]), *cells)
    show.show(table)
    for model, answer in zip(models, answers, strict=False):
        show.say(f"asked for {model}: answered by {answer.model}")


def _cell(answer: Answer, right: str) -> Text:
    """A tick and green where the answer is right."""
    text = " ".join(answer.text.split())
    short = text if len(text) <= CELL else text[: CELL - 1] + "…"
    return Text(f"✓ {short}", style="green") if answer.text.strip() == right else Text(short)


def measure(show: Display, address: Address, base: str, tasks: list[Task]) -> None:
    """Exact match of base and masks on the held-out examples: the trainer's and the server's."""
    # It imports torch, which takes seconds: not before something is shown.
    from bmt_trainer.evaluation.score import grade

    table = Table()
    for heading in ("task", "model"):
        table.add_column(heading)
    for heading in ("in the trainer", "through the server", "examples"):
        table.add_column(heading, justify="right")
    for task in tasks:
        trained = task.scores()
        served = {}
        for row, model in (("base", base), ("mask", task.name)):
            requests = [(model, example) for example in task.examples]
            with show.counting(f"{task.name}: {row}", len(requests)) as advance:
                answers = batch(address, requests, TOKENS, advance)
            served[row] = f"{grade([a.text for a in answers], task.examples).accuracy:.1%}"
        for row, label in (
            ("base", "base"),
            ("init", "untrained mask (Wanda)"),
            ("mask", f"[b]mask {task.name}[/]"),
        ):
            table.add_row(
                task.name if row == "base" else "",
                label,
                f"{trained[row]['accuracy']:.1%}",
                served.get(row, "—"),
                str(trained[row]["total"]),
                end_section=row == "mask",
            )
    show.show(table)


def replace(show: Display, address: Address, task: Task) -> None:
    """Publish a changed mask while an answer streams: the answer keeps its version."""
    mask = bmt_core.load(task.mask)
    # The same mask without the zeros of its first layer: another version, with answers of its own.
    first = mask.tensors[0]
    tensors = (bmt_core.TensorMask(first.name, first.shape, first.positions[:0]), *mask.tensors[1:])
    changed = bmt_core.Mask(mask.base, tensors, {"note": "the demo's changed version"})
    path = task.mask.with_name(f"{task.name}-changed.bmt")
    bmt_core.save(changed, path)
    nexts: list[Answer] = []

    def publish() -> None:
        show.say(f"a stream of {task.name} is running")
        upload(show, address, path, task.name)
        nexts.append(ask(address, task.name, task.examples[0], TOKENS))

    stream = stream_around(address, task.name, "Tell me about lists.", 10, publish)
    old, new = (f"{task.name}@{m.digest[:12]}" for m in (mask, changed))
    show.say(
        f"the stream, {stream.before} pieces before the upload and {stream.after} after it: "
        f"answered by {', '.join(sorted(stream.models))}"
    )
    show.say(f"the next request: answered by {nexts[0].model}")
    if stream.models != {old} or nexts[0].model != new or not stream.after:
        raise DemoError(f"expected the stream from {old} and the next answer from {new}")
