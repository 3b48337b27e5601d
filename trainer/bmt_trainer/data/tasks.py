"""Built-in generated tasks: unlimited examples without a license, reproducible from a seed.

Each task except count-letters has so many possible answers that guessing scores near 0, and each
question states the form of its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random

from bmt_trainer.data.examples import Answer, Example, chat
from bmt_trainer.data.names import keyword_types, typed
from bmt_trainer.errors import DataError

#: Common nouns.
WORDS = tuple(
    """
    acorn amber apple arrow beach berry blade bread brick bride cabin camel candy chair clock cloud
    coral crown dance delta dream eagle earth field flame flute frost fruit ghost giant glass grape
    grass green heart honey horse hotel house ivory jelly juice knife lemon light maple medal melon
    metal money moon mouse music night north ocean olive onion opera paint panda paper peach pearl
    phone piano pilot plant plate queen radio river robot salad scarf sheep shell shirt skirt smile
    snake spoon steam stone storm sugar table tiger toast torch tower train tulip uncle violin voice
    wagon water whale wheat wheel whip winter wolf world youth zebra
    """.split()  # noqa: SIM905 (a list of quoted words is less readable)
)

#: (question, answer), both text.
Question = tuple[str, str]
#: (question, answer, rejected answer), all text: a preference pair.
Choice = tuple[str, str, str]


def sort_numbers(
    random: Random, *, order: str = "descending", least: int = 4, most: int = 5
) -> Question:
    """Sort `least` to `most` different two-digit numbers."""
    numbers = random.sample(range(10, 100), random.randint(least, most))
    answer = sorted(numbers, reverse=order == "descending")
    return (
        f"Sort these numbers in {order} order: {', '.join(map(str, numbers))}",
        ", ".join(map(str, answer)),
    )


def reverse_words(random: Random, *, least: int = 4, most: int = 5) -> Question:
    """Give `least` to `most` different words in reverse order."""
    words = random.sample(WORDS, random.randint(least, most))
    return (
        f"Reverse the order of this list: {', '.join(words)}",
        ", ".join(reversed(words)),
    )


def word_order(random: Random, *, least: int = 4, most: int = 5) -> Choice:
    """The question and answer of `reverse_words`; rejected: the words in another order."""
    if least < 2:
        raise ValueError(f"least: {least}; it takes two words to have another order")
    question, answer = reverse_words(random, least=least, most=most)
    words = answer.split(", ")
    other = list(words)
    while other == words:
        random.shuffle(other)
    return question, answer, ", ".join(other)


def initials(random: Random, *, least: int = 4, most: int = 5) -> Question:
    """Join the first letters of `least` to `most` different words."""
    words = random.sample(WORDS, random.randint(least, most))
    return (
        f"Write the first letter of each word, as one string: {', '.join(words)}",
        "".join(word[0] for word in words),
    )


def count_letters(
    random: Random, *, least: int = 4, most: int = 9, instruction: bool = True
) -> Question:
    """Count a letter in `least` to `most` different words, at least one of which contains it.

    instruction: state the answer's form in the question, in the same words as `arithmetic`.
    """
    words = random.sample(WORDS, random.randint(least, most))
    letter = random.choice(random.choice(words))
    question = f"How many times does the letter {letter} occur in these words: {', '.join(words)}?"
    return _question(question, instruction), str("".join(words).count(letter))


def arithmetic(
    random: Random,
    *,
    most: int = 20,
    operations: str = "add,multiply",
    factor: int = 9,
    instruction: bool = True,
) -> Question:
    """Add or subtract numbers up to `most`, or multiply factors up to `factor`.

    operations: some of add, subtract and multiply, separated by commas.
    instruction: state the answer's form in the question. Raises ValueError.
    """
    known = {"add": ("+", most), "subtract": ("-", most), "multiply": ("*", factor)}
    name = random.choice(operations.split(","))
    if name not in known:
        raise ValueError(f"operation {name!r} is not one of {', '.join(known)}")
    sign, largest = known[name]
    a, b = random.randint(1, largest), random.randint(1, largest)
    result = {"add": a + b, "subtract": a - b, "multiply": a * b}[name]
    return _question(f"What is {a} {sign} {b}?", instruction), str(result)


def _question(question: str, instruction: bool) -> str:
    """The question, with the form of its answer if `instruction`; one wording for all tasks."""
    return f"{question} Answer with the number only." if instruction else question


#: `task:NAME` on the command line.
TASKS: dict[str, Callable[..., Question | Choice]] = {
    "arithmetic": arithmetic,
    "count-letters": count_letters,
    "initials": initials,
    "reverse-words": reverse_words,
    "sort-numbers": sort_numbers,
    "word-order": word_order,
}


def examples(name: str, options: Mapping[str, str], seed: int) -> Iterator[Example]:
    """Endless examples of the task `name`; prompts may repeat. Raises DataError."""
    if name not in TASKS:
        raise DataError(f"task {name!r} is not built in; there are {', '.join(sorted(TASKS))}")
    random = Random(seed)
    values = typed(f"task {name!r}", options, keyword_types(TASKS[name]))
    while True:
        try:
            question, answer, *other = TASKS[name](random, **values)
        except (TypeError, ValueError) as error:
            raise DataError(f"task {name!r} does not take {dict(options)} ({error})") from None
        yield Example(chat(question), answer, rejected=Answer(other[0]) if other else None)
