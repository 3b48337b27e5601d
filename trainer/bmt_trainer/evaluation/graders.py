"""Graders: comparison of a completion with the right answer, each with two readings.

The strict reading requires the requested form; the lenient one accepts any form. Both read what
stands after a completion's thoughts (`evaluation.thoughts`). A grader is a `Scorer`, what answers
are scored by; rewards of users are others, see `bmt_trainer.rewards`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bmt_trainer.data.examples import Example
from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation import answer_parsing as parse
from bmt_trainer.evaluation.formulas import overruns
from bmt_trainer.evaluation.formulas import workers as formulas
from bmt_trainer.evaluation.thoughts import completion_of
from bmt_trainer.evaluation.tool_calls import calls_in

#: (completion, answer) -> score, 0 to 1.
Comparison = Callable[[str, str], float]


@dataclass(frozen=True)
class Marks:
    """Values of completions in the strict and the lenient reading; 1 and more is right.

    None: the value of a completion that no reward applies to. chosen: the reading whose mean
    counts; graded: the values are a grader's, 0 or 1; cut: the number of completions that ended at
    their greatest length; unfinished: of those with a thought that is not closed; overrun: of those
    that the math grader could not finish within its bounds, which are wrong.
    """

    strict: Sequence[float | None]
    lenient: Sequence[float | None]
    chosen: Sequence[float | None]
    graded: bool = True
    cut: int = 0
    unfinished: int = 0
    overrun: int = 0


def counted(completions: Sequence[str], answers: Sequence[str]) -> tuple[int, int]:
    """`cut` and `unfinished` of completions, each of a right answer."""
    made = list(map(completion_of, completions))
    open_ones = (c.graded(a)[0] is None for c, a in zip(made, answers, strict=True))
    return sum(c.cut for c in made), sum(open_ones)


class Scorer(Protocol):
    """Values completions of examples, one completion each."""

    @property
    def name(self) -> str: ...

    @property
    def comparing(self) -> str:
        """Names of the graders that compare with an answer, so that rows must have one."""

    def marks(self, completions: Sequence[str], examples: Sequence[Example]) -> Marks: ...


@dataclass(frozen=True)
class Grader:
    """A comparison in two readings, of answers without their thoughts.

    by_form: right and in the requested form; by_any: right in any form.
    """

    name: str
    by_form: Comparison
    by_any: Comparison

    @property
    def comparing(self) -> str:
        """Its own name: it compares with an answer."""
        return self.name

    def strict(self, completion: str, answer: str) -> float:
        """The value in the strict reading; 0 for a completion that ends within a thought."""
        return _compared(self.by_form, completion, answer)

    def lenient(self, completion: str, answer: str) -> float:
        """The value in the lenient reading; 0 for a completion that ends within a thought."""
        return _compared(self.by_any, completion, answer)

    def marks(self, completions: Sequence[str], examples: Sequence[Example]) -> Marks:
        """Values of the completions; the strict reading counts."""
        answers = [example.answer for example in examples]
        pairs = list(zip(completions, answers, strict=True))
        strict = [self.strict(*pair) for pair in pairs]
        # The lenient reading compares all that the strict one does.
        with overruns.counting() as overrun:
            lenient = [self.lenient(*pair) for pair in pairs]
        counts = counted(completions, answers)
        return Marks(strict, lenient, strict, True, *counts, overrun.number)


def _compared(comparison: Comparison, completion: str, answer: str) -> float:
    given, right = completion_of(completion).graded(answer)
    if given is None:
        return 0.0
    try:
        return float(comparison(given, right))
    except overruns.Overrun:
        overruns.note()
        return 0.0


def is_exact(completion: str, answer: str) -> bool:
    """The completion is the answer and nothing else, apart from surrounding space."""
    return completion.strip() == answer.strip()


def is_lenient(completion: str, answer: str) -> bool:
    """The completion contains the answer's words in order, without others between them.

    Case, punctuation and markup do not count, nor do the numbers of a numbered list. An upper
    bound of a base model's accuracy, because it forgives explanations.
    """
    wanted, given = parse.words(answer), parse.words(completion)
    if not wanted or not given:  # nothing is contained in everything
        return bool(answer.strip()) and is_exact(completion, answer)
    if all(word.isdigit() for word in wanted):
        given = [word for word in given if word.isdigit()]
    elif not any(word.isdigit() for word in wanted):
        given = [word for word in given if not word.isdigit()]
    size = len(wanted)
    return any(given[at : at + size] == wanted for at in range(len(given) - size + 1))


def _is_number(completion: str, answer: str) -> bool:
    """The completion is the number and nothing else."""
    return _equal(parse.only_number(completion), parse.number(answer))


def _ends_with_number(completion: str, answer: str) -> bool:
    """The last number in the completion is the answer."""
    return _equal(parse.last_number(completion), parse.number(answer))


def _gsm8k(completion: str, answer: str) -> bool:
    """The text after `####` is the answer's, as verl compares it: 18. and 18.0 are not 18."""
    return parse.gsm8k_text(completion) == answer.strip().replace(",", "")


def _letter(completion: str, answer: str) -> bool:
    """The letter after "answer is" is the answer's."""
    return _equal(parse.stated_letter(completion), parse.reference_letter(answer))


def _letter_anywhere(completion: str, answer: str) -> bool:
    """The last option letter is the answer's."""
    return _equal(parse.last_letter(completion), parse.reference_letter(answer))


def _equal(given: object, wanted: object) -> bool:
    """Equal, and something was read: None equals nothing."""
    return given is not None and given == wanted


def _math_boxed(completion: str, answer: str) -> bool:
    """The last formula of a completion that has a \\boxed one equals the answer."""
    # Departure: SimpleRL-Zoo uses Qwen's grader, whose tolerance is for integers too.
    return "\\boxed" in completion and formulas.equal(completion, answer)


def _bbeh(completion: str, answer: str) -> bool:
    """The text after "The answer is", or without these words all of it, equals the answer.

    Prefixes and normalization are those of BBEH's evaluator.
    """
    return _bbeh_equal(parse.bbeh_answer(completion.strip()), parse.bbeh_answer(answer))


def _bbeh_anywhere(completion: str, answer: str) -> bool:
    """The same, or the last line that is not blank equals the answer."""
    if _bbeh(completion, answer):
        return True
    last = parse.bbeh_last_line(completion)
    return last is not None and _bbeh_equal(last, parse.bbeh_answer(answer))


def _bbeh_equal(given: str, wanted: str) -> bool:
    """Equal after normalization, as text or as numbers."""
    a, b = parse.bbeh_normalized(given), parse.bbeh_normalized(wanted)
    if a == b or a.replace("'", "") == b.replace("'", ""):
        return True
    try:
        return float(a) == float(b)
    except ValueError:
        return False


def _tools(completion: str, answer: str) -> bool:
    """SDFT's protocol: the same calls, and the same arguments merged over all calls."""
    return _tools_named(completion, answer) and (
        parse.tool_arguments(completion) == parse.reference_arguments(answer)
    )


def _tools_named(completion: str, answer: str) -> bool:
    """The same calls, with any arguments."""
    return parse.tool_names(completion) == parse.tool_names(answer)


def _calls(completion: str, answer: str) -> bool:
    """The answer's calls in its order, arguments equal as JSON values, and nothing malformed.

    An answer without calls must be given as it is.
    """
    wanted, given = calls_in(answer), calls_in(completion)
    if not wanted.items:
        return is_exact(completion, answer)
    return given.items == wanted.items and (given.whole or not wanted.whole)


def _calls_named(completion: str, answer: str) -> bool:
    """The answer's calls in its order, with any arguments; the words of an answer without calls."""
    wanted = calls_in(answer)
    if not wanted.items:
        return is_lenient(completion, answer)
    return calls_in(completion).names == wanted.names


#: The whole answer, as supervised training teaches it.
WORDS = Grader("words", is_exact, is_lenient)
#: The same, but of an answer with tool calls the calls alone, whatever their layout.
TOOL_CALLS = Grader("tool-calls", _calls, _calls_named)

GRADERS: Mapping[str, Grader] = {
    grader.name: grader
    for grader in (
        WORDS,
        Grader("number", _is_number, _ends_with_number),
        Grader("gsm8k", _gsm8k, _ends_with_number),
        Grader("math", _math_boxed, formulas.equal),
        Grader("letter", _letter, _letter_anywhere),
        Grader("bbeh", _bbeh, _bbeh_anywhere),
        Grader("tools", _tools, _tools_named),
        TOOL_CALLS,
    )
}

#: The default of all data sets that are no benchmark: words, but calls of an answer that has any.
DEFAULT = Grader("words", TOOL_CALLS.by_form, TOOL_CALLS.by_any)

#: Default graders of benchmark forms.
BY_FORM = {"mmlu-pro": "letter", "bbeh": "bbeh", "tools": "tools"}


def find_for(dataset: str, name: str | None) -> Grader:
    """The grader `name`, or the default of the data set's form. Raises ConfigError."""
    name = name or BY_FORM.get(dataset.partition(":")[0])
    return DEFAULT if name is None else find(name)


def find(name: str) -> Grader:
    """A grader by name. Raises ConfigError."""
    if name not in GRADERS:
        raise ConfigError(f"grader: {name!r} is not one of {', '.join(GRADERS)}")
    if name == "math" and importlib.util.find_spec("math_verify") is None:
        raise ConfigError("reward: math needs the package math-verify: pip install math-verify")
    return GRADERS[name]
