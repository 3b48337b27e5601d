"""Readers of benchmarks' own files, by the form of their rows: `FORM:SOURCE?option=value`.

SOURCE is a file, a URL, or a Hub data set with the options `config`, `split` and `revision`. Files
are read as published, without conversion.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bmt_trainer.data.examples import Example, chat
from bmt_trainer.data.names import check_options
from bmt_trainer.data.rows import Rows, files, local_files, places, repositories
from bmt_trainer.errors import DataError
from bmt_trainer.settings import expanded

Row = Mapping[str, Any]

# Instructions of the prompts: verl's for GSM8K, then SimpleRL-Zoo's `qwen-boxed`.
_GSM8K = 'Let\'s think step by step and output the final answer after "####".'
_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
# SimpleRL-Zoo's prompt for small models, a text without a chat template.
_SIMPLE = "Question:\n{question}\nAnswer:\nLet's think step by step.\n"
_ASSISTANT = {"role": "system", "content": "You are a helpful assistant."}
_LETTERS = "ABCDEFGHIJ"
_TOOLS = """You can call these functions:

{functions}

Answer with the calls that the request needs, each as two lines:
Action: the function's name
Action Input: its arguments as JSON

Request: {request}"""


def examples(form: str, source: str, options: Mapping[str, str]) -> Iterator[Example]:
    """Examples of the file or Hub data set `source`, whose rows have the form. Raises DataError."""
    read = FORMS[form]
    known = (*repositories.OPTIONS, *(("subject",) if form == "mmlu-pro" else ()))
    check_options(f"{form}:", options, known)
    subject, seen = options.get("subject"), set[str]()
    if subject is not None:
        subject = subject.replace("+", " ")  # as recipes write `computer+science`
    for location, row in _rows(source, options):
        if not isinstance(row, Mapping):
            raise DataError(f"{location}: expected an object")
        if subject is not None:
            seen.add(str(row.get("category")))
            if row.get("category") != subject:
                continue
        try:
            yield from read(row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(
                f"{location}: not a row of {form} ({type(error).__name__}: {error})"
            ) from None
    if seen and str(subject) not in seen:
        raise DataError(
            f"{source} has no rows with subject {subject}; it has {', '.join(sorted(seen))}"
        )


def _rows(source: str, options: Mapping[str, str]) -> Rows:
    if expanded(source).is_dir():
        raise DataError(f"{source} is a folder; name one of its files")
    if local_files.is_url(source):
        return files.of_url(source, {})
    found = places.local(source)
    if found is not None:
        return files.of_places(found, {})
    if places.is_path(source):
        return files.of_file(Path(source))
    return repositories.of_hub(source, options, default_split="test", otherwise="not a file")


def _gsm8k(row: Row) -> Iterator[Example]:
    """GSM8K with the prompt of verl's recipe; the answer is the number after `####`."""
    question, (_, number) = row["question"], row["answer"].split("####")
    yield Example(chat(f"{question} {_GSM8K}"), number.strip().replace(",", ""))


def _gsm8k_boxed(row: Row) -> Iterator[Example]:
    """GSM8K with the prompt of SimpleRL-Zoo's evaluation."""
    question, (_, number) = row["question"], row["answer"].split("####")
    yield _boxed(question, number.strip().replace(",", ""))


def _math(row: Row) -> Iterator[Example]:
    """SimpleRL-Zoo's mathematics sets: the answer is a field, or at the end of the solution."""
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
    """An example with SimpleRL-Zoo's `qwen-boxed` prompt."""
    # Departure: SimpleRL-Zoo has another prompt for small models, see `_simple`.
    return Example((_ASSISTANT, *chat(f"{question}\n{_BOXED}")), answer)


def _simple(read: Callable[[Row], Iterator[Example]]) -> Callable[[Row], Iterator[Example]]:
    """A reader of the same rows with SimpleRL-Zoo's prompt for small models.

    It asks for no \\boxed, so answers are read by the lenient reading of `math`.
    """

    def simple(row: Row) -> Iterator[Example]:
        for example in read(row):
            question = example.messages[-1]["content"].removesuffix(f"\n{_BOXED}")
            yield Example(_SIMPLE.format(question=question), example.answer)

    return simple


def _last_boxed(solution: str) -> str:
    """The content of the last \\boxed{…}, with balanced braces. Raises ValueError."""
    begin = solution.rindex("\\boxed{") + len("\\boxed{")
    depth = 1
    for at in range(begin, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[at], 0)
        if not depth:
            return solution[begin:at]
    raise ValueError("\\boxed{ without its closing brace")


def _mmlu_pro(row: Row) -> Iterator[Example]:
    # Departure: words of our own; the paper states none.
    options = row["options"]
    answer = row["answer"]
    if answer not in _LETTERS[: len(options)]:
        raise ValueError(f"answer {answer!r} is not one of {len(options)} options")
    listed = "\n".join(f"({_LETTERS[i]}) {text}" for i, text in enumerate(options))
    prompt = f'{row["question"]}\n{listed}\nAnswer in the form "The answer is (X)."'
    yield Example(chat(prompt), f"The answer is ({answer}).")


def _bbeh(row: Row) -> Iterator[Example]:
    # Departure: words of our own; the paper states none.
    prompt = f'{row["input"].strip()}\nAnswer in the form "The answer is: …".'
    yield Example(chat(prompt), f"The answer is: {row['target']}")


def _tools(row: Row) -> Iterator[Example]:
    """ToolAlpaca's own file or SDFT's version of it.

    A row of the first is one API with all requests to it; a row of the second is one request with
    its prompt and perhaps a demonstration.
    """
    # Departure: requests whose arguments an earlier call returns are left out.
    if "Instructions" in row:
        functions = row["NLDocumentation"]
        for request, calls in zip(row["Instructions"], row["Golden_Answers"], strict=True):
            if any("${" in str(call["Action_Input"]) for call in calls):
                continue  # an argument is the output of an earlier call: no fixed right answer
            answer = tool_calls([_call(call) for call in calls])
            prompt = _TOOLS.format(functions=functions.strip(), request=request)
            yield Example(chat(prompt), answer)
        return
    answer = tool_calls([_call(call) for call in row["golden_answer"]])
    demonstration = row.get("golden_response")
    if isinstance(demonstration, list):
        demonstration = "\n".join(demonstration)
    yield Example(chat(row["prompt"]), answer, demonstration)


def _call(call: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    value = call["Action_Input"]
    arguments = json.loads(value) if isinstance(value, str) else dict(value)
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments {value!r} are not an object")
    return call["Action"], arguments


def tool_calls(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Calls, each (function, arguments), as text in the form that the prompt asks for.

    One line each for `Action:` and `Action Input:`; `evaluation.answer_parsing` reads it.
    """
    return "\n".join(
        f"Action: {name}\nAction Input: {json.dumps(arguments, ensure_ascii=False)}"
        for name, arguments in calls
    )


#: Readers of rows by FORM.
FORMS: Mapping[str, Callable[[Row], Iterator[Example]]] = {
    "gsm8k": _gsm8k,
    "gsm8k-boxed": _gsm8k_boxed,
    "gsm8k-simple": _simple(_gsm8k_boxed),
    "math": _math,
    "math-simple": _simple(_math),
    "mmlu-pro": _mmlu_pro,
    "bbeh": _bbeh,
    "tools": _tools,
}
