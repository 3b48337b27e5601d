"""What counts as a right answer. A grader has a strict reading and a forgiving one.

`find` names them on the command line: words, number, gsm8k, math, letter, bbeh, tools, or
FILE.py:FUNCTION.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.answer_parsing import (
    bbeh_lenient,
    bbeh_strict,
    letter_lenient,
    letter_strict,
    tools_lenient,
    tools_strict,
)

#: (completion, answer) -> how right it is, 0 to 1.
Judge = Callable[[str, str], float]

_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
# verl looks at the end of an answer only (utils/reward_score/gsm8k.py), and so do we.
_END = 300


@dataclass(frozen=True)
class Grader:
    """strict: right, and in the form that was asked for; lenient: right, however it is put."""

    name: str
    strict: Judge
    lenient: Judge

    def judge(self, reading: str) -> Judge:
        """The strict or the lenient reading, by name."""
        return self.lenient if reading == "lenient" else self.strict


def is_exact(completion: str, answer: str) -> bool:
    """The completion is the answer and nothing else, but for space around it."""
    return completion.strip() == answer.strip()


def is_lenient(completion: str, answer: str) -> bool:
    """The answer's words stand somewhere in the completion, in order and unbroken.

    Case, punctuation and mark-up do not count, nor do the numbers of a numbered list. It is what
    a base model may claim if its habit of explaining is forgiven, so a bound from above.
    """
    wanted, found = _words(answer), _words(completion)
    if all(word.isdigit() for word in wanted):
        found = [word for word in found if word.isdigit()]
    elif not any(word.isdigit() for word in wanted):
        found = [word for word in found if not word.isdigit()]
    size = len(wanted)
    return any(found[at : at + size] == wanted for at in range(len(found) - size + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def is_number(completion: str, answer: str) -> bool:
    """The completion is this number and nothing else."""
    return bool(re.fullmatch(_NUMBER, completion.strip())) and _value(completion) == _value(answer)


def ends_with_number(completion: str, answer: str) -> bool:
    """The last number in the completion is this one."""
    found = re.findall(_NUMBER, completion)
    return bool(found) and _value(found[-1]) == _value(answer)


def gsm8k_strict(completion: str, answer: str) -> bool:
    """The number after the last `####` near the end, as verl's GSM8K reward reads it."""
    found = re.findall(rf"#### ({_NUMBER})", completion[-_END:])
    return bool(found) and _value(found[-1]) == _value(answer)


def _value(number: str) -> float | None:
    try:
        return float(number.strip().replace(",", ""))
    except ValueError:
        return None


def math_equal(completion: str, answer: str) -> bool:
    """math-verify finds the completion's last formula equal to the answer."""
    from math_verify import parse, verify

    # Without its own time limit, which needs the main thread.
    given = parse(completion, parsing_timeout=None)
    wanted = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    return bool(verify(wanted, given, timeout_seconds=None))


def _boxed(completion: str, answer: str) -> bool:
    return "\\boxed" in completion and math_equal(completion, answer)


#: Whole answers, as in supervised training.
WORDS = Grader("words", is_exact, is_lenient)

GRADERS: Mapping[str, Grader] = {
    grader.name: grader
    for grader in (
        WORDS,
        Grader("number", is_number, ends_with_number),
        Grader("gsm8k", gsm8k_strict, ends_with_number),
        Grader("math", _boxed, math_equal),
        Grader("letter", letter_strict, letter_lenient),
        Grader("bbeh", bbeh_strict, bbeh_lenient),
        Grader("tools", tools_strict, tools_lenient),
    )
}


#: What is right in a benchmark's own form, where nothing else is said.
BY_FORM = {"mmlu-pro": "letter", "bbeh": "bbeh", "tools": "tools"}


def find_for(dataset: str, name: str | None) -> Grader:
    """The grader of that name, or without one the data set's: words, if its form has none."""
    return find(name or BY_FORM.get(dataset.partition(":")[0], "words"))


def find(name: str) -> Grader:
    """A grader by name, or a user's function as FILE.py:FUNCTION. Raises ConfigError.

    The function takes a completion and the answer, both text, and returns a number from 0 to 1;
    in evaluation an answer counts as right from 1 on.
    """
    if ".py:" in name:
        path, _, function = name.rpartition(":")
        judge = _load(Path(path).expanduser(), function)
        return Grader(name, judge, judge)
    if name not in GRADERS:
        raise ConfigError(f"reward: {name!r} is none of {', '.join(GRADERS)}, nor FILE.py:FUNCTION")
    if name == "math" and importlib.util.find_spec("math_verify") is None:
        raise ConfigError("reward: math needs the package math-verify: pip install math-verify")
    return GRADERS[name]


def _load(path: Path, function: str) -> Judge:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    try:
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, function)
    except Exception as error:  # whatever a user's file raises
        raise ConfigError(f"reward: {path}:{function} cannot be loaded ({error})") from error
    if not callable(found):
        raise ConfigError(f"reward: {path}:{function} is no function")
    judge: Judge = found
    return judge
