"""Benchmarks' own files as examples, by the form of their rows: `FORM:PLACE?option=value`.

PLACE is a file (.jsonl, .json, either also .gz), or a data set of the Hub with `config` and
`split`. What a file holds is what its publisher wrote: no conversion by hand.
"""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bmt_trainer.data.sources import Example, chat
from bmt_trainer.errors import DataError
from bmt_trainer.evaluation.answer_parsing import tool_calls

Row = Mapping[str, Any]

_GSM8K = 'Let\'s think step by step and output the final answer after "####".'
_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_ASSISTANT = {"role": "system", "content": "You are a helpful assistant."}
_LETTERS = "ABCDEFGHIJ"
_TOOLS = """You can call these functions:

{functions}

Answer with the calls that the request needs, each as two lines:
Action: the function's name
Action Input: its arguments as JSON

Request: {request}"""


def examples(form: str, place: str, options: Mapping[str, Any]) -> Iterator[Example]:
    """The examples of `place`, whose rows have the form. Raises DataError."""
    read = FORMS[form]
    known = {"config", "split"} | ({"subject"} if form == "mmlu-pro" else set())
    unknown = sorted(options.keys() - known)
    if unknown:
        raise DataError(f"{form}: does not take {', '.join(unknown)}; {', '.join(sorted(known))}")
    subject, seen = options.get("subject"), set[str]()
    for where, row in rows(place, options):
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: expected an object")
        if subject is not None:
            seen.add(str(row.get("category")))
            if row.get("category") != subject:
                continue
        try:
            yield from read(row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(
                f"{where}: not a row of {form} ({type(error).__name__}: {error})"
            ) from None
    if seen and str(subject) not in seen:
        raise DataError(f"{place} has nothing of {subject}; it has {', '.join(sorted(seen))}")


def rows(place: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Where each row is, for messages, and its value. Raises DataError."""
    path = Path(place).expanduser()
    if path.is_dir():
        raise DataError(f"{place} is a folder; name one of its files")
    if not path.exists() and not {".jsonl", ".json", ".gz"} & set(path.suffixes):
        yield from _hub_rows(place, options)
        return
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{place} cannot be read ({error})") from None
    if ".jsonl" in path.suffixes:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"{place}, line {number}", _json(line, f"{place}, line {number}")
        return
    whole = _json(text, place)
    # BBEH's files hold their examples beside a canary.
    listed = whole.get("examples") if isinstance(whole, dict) else whole
    if not isinstance(listed, list):
        raise DataError(f"{place} holds neither a list nor `examples`")
    for number, row in enumerate(listed, 1):
        yield f"{place}, entry {number}", row


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from None


def _hub_rows(name: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        found = datasets.load_dataset(
            name, options.get("config"), split=options.get("split", "test")
        )
    except Exception as error:  # the library raises whatever its readers and its transport raise
        raise DataError(
            f"{name!r} is no file here, and the Hub does not give it as a data set "
            f"({type(error).__name__}: {error})"
        ) from error
    for number, row in enumerate(found):
        yield f"{name}, row {number}", row


def _gsm8k(row: Row) -> Iterator[Example]:
    """The question with the suffix that verl's recipe adds; the answer is the number alone."""
    question, (_, number) = row["question"], row["answer"].split("####")
    yield Example(chat(f"{question} {_GSM8K}"), number.strip().replace(",", ""))


def _gsm8k_boxed(row: Row) -> Iterator[Example]:
    """GSM8K in SimpleRL-Zoo's evaluation."""
    question, (_, number) = row["question"], row["answer"].split("####")
    yield _boxed(question, number.strip().replace(",", ""))


def _math(row: Row) -> Iterator[Example]:
    """Rows of SimpleRL-Zoo's sets: a problem, and its answer apart or at the solution's end."""
    question = row["problem"] if "problem" in row else row["question"]
    answer = row.get("answer")
    if answer is None and row.get("final_answer") is not None:
        listed = row["final_answer"]
        listed = ast.literal_eval(listed) if isinstance(listed, str) else listed
        answer = ", ".join(str(part).strip().strip("$") for part in listed)
    if answer is None:
        answer = _last_boxed(row["solution"])
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    yield _boxed(question, str(answer).strip().strip("$"))


def _boxed(question: str, answer: str) -> Example:
    """With SimpleRL-Zoo's `qwen-boxed` prompt."""
    return Example((_ASSISTANT, *chat(f"{question}\n{_BOXED}")), answer)


def _last_boxed(solution: str) -> str:
    """What stands in the last \\boxed{…}, braces counted."""
    begin = solution.rindex("\\boxed{") + len("\\boxed{")
    depth = 1
    for at in range(begin, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[at], 0)
        if not depth:
            return solution[begin:at]
    raise ValueError("a \\boxed{ without its end")


def _mmlu_pro(row: Row) -> Iterator[Example]:
    options = row["options"]
    answer = row["answer"]
    if answer not in _LETTERS[: len(options)]:
        raise ValueError(f"answer {answer!r} of {len(options)} options")
    listed = "\n".join(f"({_LETTERS[i]}) {text}" for i, text in enumerate(options))
    asked = f'{row["question"]}\n{listed}\nAnswer in the form "The answer is (X)."'
    yield Example(chat(asked), f"The answer is ({answer}).")


def _bbeh(row: Row) -> Iterator[Example]:
    asked = f'{row["input"].strip()}\nAnswer in the form "The answer is: …".'
    yield Example(chat(asked), f"The answer is: {row['target']}")


def _tools(row: Row) -> Iterator[Example]:
    """ToolAlpaca's own file, an interface a row with all requests to it, or SDFT's, a request a
    row with its prompt and perhaps its demonstration."""
    if "Instructions" in row:
        functions = row["NLDocumentation"]
        for request, calls in zip(row["Instructions"], row["Golden_Answers"], strict=True):
            if any("${" in str(call["Action_Input"]) for call in calls):
                continue  # an argument that an earlier call would have told: none to compare with
            answer = tool_calls([_call(call) for call in calls])
            asked = _TOOLS.format(functions=functions.strip(), request=request)
            yield Example(chat(asked), answer)
        return
    answer = tool_calls([_call(call) for call in row["golden_answer"]])
    shown = row.get("golden_response")
    if isinstance(shown, list):
        shown = "\n".join(shown)
    yield Example(chat(row["prompt"]), answer, shown)


def _call(call: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    given = call["Action_Input"]
    arguments = json.loads(given) if isinstance(given, str) else dict(given)
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments {given!r}")
    return call["Action"], arguments


#: `FORM:PLACE` on the command line.
FORMS: Mapping[str, Callable[[Row], Iterator[Example]]] = {
    "gsm8k": _gsm8k,
    "gsm8k-boxed": _gsm8k_boxed,
    "math": _math,
    "mmlu-pro": _mmlu_pro,
    "bbeh": _bbeh,
    "tools": _tools,
}
