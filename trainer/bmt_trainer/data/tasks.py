"""Built-in tasks: endless, generated, free of anybody's licence. A seed gives the examples.

Each but count-letters has so many possible answers that a guess is worth nothing, and each question
says what to do in words that leave the answer's form no choice.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

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
    """.split()  # noqa: SIM905 (a page of quotation marks is no better)
)

Question = tuple[str, str]


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


def initials(random: Random, *, least: int = 4, most: int = 5) -> Question:
    """The first letters of `least` to `most` different words, as one string."""
    words = random.sample(WORDS, random.randint(least, most))
    return (
        f"Write the first letter of each word, as one string: {', '.join(words)}",
        "".join(word[0] for word in words),
    )


def count_letters(
    random: Random, *, least: int = 4, most: int = 9, instruction: bool = True
) -> Question:
    """How often a letter occurs in `least` to `most` different words, one of which has it.

    instruction: whether the question says what to answer with, in the words that `arithmetic` has.
    """
    words = random.sample(WORDS, random.randint(least, most))
    letter = random.choice(random.choice(words))
    question = f"How many times does the letter {letter} occur in these words: {', '.join(words)}?"
    return _told(question, instruction), str("".join(words).count(letter))


def arithmetic(
    random: Random,
    *,
    most: int = 20,
    operations: str = "add,multiply",
    factor: int = 9,
    instruction: bool = True,
) -> Question:
    """A sum or difference of numbers up to `most`, or a product of factors up to `factor`.

    instruction: whether the question says what to answer with.
    """
    known = {"add": ("+", most), "subtract": ("-", most), "multiply": ("*", factor)}
    name = random.choice(operations.split(","))
    if name not in known:
        raise ValueError(f"operation {name!r} is none of {', '.join(known)}")
    sign, largest = known[name]
    a, b = random.randint(1, largest), random.randint(1, largest)
    result = {"add": a + b, "subtract": a - b, "multiply": a * b}[name]
    return _told(f"What is {a} {sign} {b}?", instruction), str(result)


def _told(question: str, instruction: bool) -> str:
    """The question, perhaps with the form of its answer: the same words for all such tasks."""
    return f"{question} Answer with the number only." if instruction else question


#: `task:NAME` on the command line.
TASKS: dict[str, Callable[..., Question]] = {
    "arithmetic": arithmetic,
    "count-letters": count_letters,
    "initials": initials,
    "reverse-words": reverse_words,
    "sort-numbers": sort_numbers,
}
