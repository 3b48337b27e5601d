"""A few of each step's sampled completions in a run's trackers, in the form that each one has.

trackio and Weights & Biases get a table of a step, as TRL's `log_completions` gives them (1.16,
trainer/grpo_trainer.py, `log`; without its print and its files); MLflow one table that grows,
TensorBoard a text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import pandas
from transformers.integrations import TensorBoardCallback

#: Completions of a step that are reported, spread over its prompts.
PER_STEP = 4

#: A step's samples: columns of equal length by name.
Table = Mapping[str, Sequence[Any]]

# Columns besides the rewards.
_OTHERS = ("step", "prompt", "completion", "advantage")


def some(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """`PER_STEP` rows of the columns, spread evenly, with prompts and completions as text."""
    count = min((len(values) for values in columns.values()), default=0)
    taken = sorted({at * count // PER_STEP for at in range(PER_STEP)}) if count else []
    rows = {name: list(values) for name, values in columns.items()}
    return {name: [_cell(values[at]) for at in taken] for name, values in rows.items()}


def reward_columns(rewards: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Columns of rewards by their names, which may be those of other columns."""
    return {f"reward {name}" if name in _OTHERS else name: v for name, v in rewards.items()}


def _cell(value: Any) -> Any:
    """A number, or text: of turns a line each with the role, of a call its function.

    A number that is none, of a reward that does not apply, is None.
    """
    if isinstance(value, float) and math.isnan(value):
        return None
    if not isinstance(value, list):
        return value
    lines = []
    for turn in value:
        called = [str(call.get("function", call)) for call in turn.get("tool_calls") or ()]
        lines.append(f"{turn['role']}: {' '.join([str(turn.get('content') or ''), *called])}")
    return "\n".join(lines)


def report(trainer: Any, samples: Table) -> None:
    """Send a step's samples to the trackers of a trainer; from its first process alone.

    Before the step's figures: in Weights & Biases both then have one step.
    """
    if not trainer.accelerator.is_main_process or not any(samples.values()):
        return
    step = trainer.state.global_step
    table = {"step": [step] * len(next(iter(samples.values()))), **samples}
    for name in trainer.args.report_to:
        if name in _REPORTERS:
            _REPORTERS[name](import_module(name), table)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_text("completions", markdown(table), step)


def _wandb(wandb: Any, table: Table) -> None:
    if wandb.run is not None:
        frame = wandb.Table(dataframe=pandas.DataFrame(dict(table)))
        wandb.log({"completions": frame}, commit=False)


def _trackio(trackio: Any, table: Table) -> None:
    trackio.log({"completions": trackio.Table(dataframe=pandas.DataFrame(dict(table)))})


def _mlflow(mlflow: Any, table: Table) -> None:
    if mlflow.active_run() is not None:
        mlflow.log_table({name: list(values) for name, values in table.items()}, _FILE)


# MLflow's artifact, to which each step's rows are added.
_FILE = "completions.json"
_REPORTERS: Mapping[str, Callable[[Any, Table], None]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


def markdown(table: Table) -> str:
    """A table of Markdown, in which text stays text."""
    names = list(table)
    lines = [f"| {' | '.join(map(_escaped, names))} |", f"|{'---|' * len(names)}"]
    for row in zip(*table.values(), strict=True):
        lines.append(f"| {' | '.join(map(_escaped, row))} |")
    return "\n".join(lines)


def _escaped(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else str(value)
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;")):
        text = text.replace(sign, entity)
    for sign in ("\\", "*", "_", "[", "!", "#", "~"):
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\r", "").replace("\n", "<br>")
