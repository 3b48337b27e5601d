"""Graders in the forms that reference graders accept or refuse, each written by hand.

math: math-verify itself where the two agree, and the value where math-verify is wrong. gsm8k: the
rule of verl's reward, text after the last `#### ` of the last 300 characters. bbeh: the rules of
BBEH's evaluator. letter: MMLU-Pro's evaluator, and where this one differs. tools: the rule of
SDFT's evaluation. number and words have no reference but their own words.
"""

from __future__ import annotations

import re

import pytest
from bmt_trainer.evaluation.graders import find

MATH = [
    (r"\boxed{7}", "7", True),
    (r"So it is $\boxed{7}$.", "7", True),
    (r"\boxed{7.0}", "7", True),
    (r"\boxed{8}", "7", False),
    (r"\boxed{-7}", "7", False),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", True),
    (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", True),
    (r"\boxed{\dfrac12}", r"\frac{1}{2}", True),
    (r"\boxed{0.5}", r"\frac{1}{2}", True),
    (r"\boxed{1/2}", r"\frac{1}{2}", True),
    (r"\boxed{0.25}", r"\frac{1}{2}", False),
    (r"\boxed{2\sqrt{3}}", r"2\sqrt{3}", True),
    (r"\boxed{\sqrt{12}}", r"2\sqrt{3}", True),
    (r"\boxed{3\sqrt{2}}", r"2\sqrt{3}", False),
    (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}", True),
    (r"\boxed{\pi}", r"\pi", True),
    (r"\boxed{2\pi}", r"\pi", False),
    (r"\boxed{(3, 4)}", "(3,4)", True),
    (r"\boxed{(4, 3)}", "(3,4)", False),
    (r"\boxed{[0, 1)}", "[0,1)", True),
    (r"\boxed{\{1, 2\}}", r"\{2,1\}", True),
    (r"\boxed{x^2 + 2x + 1}", "(x+1)^2", True),
    (r"\boxed{x^2 + 1}", "(x+1)^2", False),
    (r"\boxed{a+b}", "b+a", True),
    (r"\boxed{5\%}", "5", True),
    (r"\boxed{10{,}000}", "10000", True),
    (r"\boxed{10,000}", "10000", True),
    (r"\boxed{10001}", "10000", False),
    (r"\boxed{x = 5}", "5", True),
    (r"\boxed{\text{B}}", "B", True),
    ("no formula", "7", False),
]
# Where math-verify is wrong: it reads e as the base of logarithms, and rounds to six decimals.
VALUES = [
    (r"\boxed{4.5 \times 10^{33}}", "4.5e33", True),
    (r"\boxed{4.5\cdot 10^{33}}", "4.5e33", True),
    (r"\boxed{4.5e33}", "4.5e33", True),
    (r"\boxed{45e32}", "4.5e33", True),
    (r"\boxed{45 \times 10^{32}}", "4.5e33", True),
    (r"\boxed{4.6 \times 10^{33}}", "4.5e33", False),
    (r"\boxed{4.5 \times 10^{32}}", "4.5e33", False),
    (r"\boxed{1.6 \times 10^{-19} \text{ C}}", "1.6e-19", True),
    (r"\boxed{1.6 \times 10^{-18}}", "1.6e-19", False),
    (r"\boxed{0}", "1.6e-19", False),
    (r"\boxed{1.6 \times 10^{-18}}", r"1.6 \times 10^{-19}", False),
    (r"\boxed{0.3333}", r"\frac{1}{3}", True),
    (r"\boxed{0.333}", r"\frac{1}{3}", False),
    (r"\boxed{3.1416}", r"\pi", True),
    (r"\boxed{18}", "17.9999", True),
    (r"\boxed{18.001}", "18", False),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("text", "answer", "right"), MATH)
def test_math_is_math_verify(text, answer, right):
    from math_verify import parse, verify

    wanted = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    reference = verify(wanted, parse(text, parsing_timeout=None), timeout_seconds=None)
    assert bool(reference) == right
    assert bool(find("math").strict(text, answer)) == right


@pytest.mark.found
@pytest.mark.parametrize(("text", "answer", "right"), VALUES)
def test_math_compares_values_where_math_verify_is_wrong(text, answer, right):
    assert bool(find("math").strict(text, answer)) == right


@pytest.mark.found
@pytest.mark.parametrize("mantissa", ["1", "4.5", "6.02", "9.99"])
@pytest.mark.parametrize("power", [-34, -19, -7, 3, 8, 33, 57])
def test_any_gold_with_an_exponent_can_be_answered(mantissa, power):
    gold = f"{mantissa}e{power}"
    for text in (rf"{mantissa} \times 10^{{{power}}}", gold, rf"{mantissa}\cdot10^{{{power}}}"):
        assert find("math").strict(rf"\boxed{{{text}}}", gold), text
    wrong = rf"\boxed{{{mantissa} \times 10^{{{power + 1}}}}}"
    assert not find("math").strict(wrong, gold)


GSM8K = [
    ("#### 18", "18", True),
    ("So 9 + 9 = 18\n#### 18", "18", True),
    ("#### 18\n", "18", True),
    ("#### 18 dollars", "18", True),
    ("#### 18, so", "18", True),
    ("#### 1,000", "1000", True),
    ("#### 1,0,00", "1000", True),
    ("#### -5", "-5", True),
    ("#### 0.5", "0.5", True),
    ("#### 17\n#### 18", "18", True),
    ("#### 018", "18", False),
    ("#### 18.", "18", False),
    ("#### 18.0", "18", False),
    ("#### 18.00", "18", False),
    ("#### +18", "18", False),
    ("#### $18", "18", False),
    ("#### 18\n#### 17", "18", False),
    ("####18", "18", False),
    ("####  18", "18", False),
    ("### 18", "18", False),
    ("##### 18", "18", True),
    ("18", "18", False),
    ("The answer is 18.", "18", False),
    (r"\boxed{18}", "18", False),
    ("#### **18**", "18", False),
    ("#### eighteen", "18", False),
    ("#### 18" + " x" * 200, "18", False),
    ("y " * 400 + "#### 18", "18", True),
    ("#### 5e3", "5000", False),
    ("#### .5", ".5", True),
    ("#### 1/2", "0.5", False),
]


@pytest.mark.found
@pytest.mark.parametrize(("text", "answer", "right"), GSM8K)
def test_gsm8k_is_verls(text, answer, right):
    assert bool(find("gsm8k").strict(text, answer)) == right


BBEH = [
    ("The answer is: 12", "12", True),
    ("The answer is 12", "12", True),
    ("The final answer is: 12", "12", True),
    ("The final answer is 12", "12", True),
    ("12", "12", True),
    ("12.", "12", True),
    ("12.0", "12", True),
    ("Well. The answer is: 12.", "12", True),
    ("The answer is: 11. No, the answer is: 12", "12", True),
    ("The answer is: **12**", "12", True),
    ("The answer is: $12$", "12", True),
    (r"The answer is: \boxed{12}", "12", True),
    (r"The answer is: \text{yes}", "yes", True),
    ("The answer is: (B)", "B", True),
    ("The answer is: B", "(B)", True),
    ("The answer is: yes", "Yes", True),
    ("The answer is: a, b, c", "a,b,c", True),
    ("The answer is: [1, 2]", "1, 2", True),
    ("The answer is: 1, 2", "[1, 2]", True),
    ("The answer is: it's", "its", True),
    ("The answer is: why?", "why", True),
    ("The answer is: 12\nbecause of the sum", "12", True),
    ("The answer is: 13", "12", False),
    ("The answer is: twelve", "12", False),
    ("It is 12", "12", False),
    ("12 apples", "12", False),
    ("The answer is: 12 apples", "12", False),
    ("The answer is: b, a, c", "a,b,c", False),
    ("The answer is: (C)", "B", False),
    ("The answer is:", "12", False),
    ("Reasoning.\n12", "12", False),
]


@pytest.mark.found
@pytest.mark.parametrize(("text", "answer", "right"), BBEH)
def test_bbeh_is_its_evaluators(text, answer, right):
    assert bool(find("bbeh").strict(text, answer)) == right
    assert bool(find("bbeh").lenient(text, answer)) == (right or text.endswith("\n12"))


# (text, right by MMLU-Pro's evaluator, by the strict reading, by the lenient one), of answer C.
# Its evaluator takes the first letter after "answer is", or after the last "answer:", or the last
# capital from A to J, a word's first one too; without any it draws one at random (here: wrong).
LETTER = [
    ("The answer is (C).", True, True, True),
    ("The answer is (C)", True, True, True),
    ("the answer is C", True, True, True),
    ("answer is C.", True, True, True),
    ("So the answer is (C), as 2 + 2 = 4.", True, True, True),
    ("Think.\nThe answer is (C).", True, True, True),
    ("The correct answer is C", True, True, True),
    ("The answer is (D).", False, False, False),
    ("The answer is (A).", False, False, False),
    ("", False, False, False),
    ("none of them", False, False, False),
    ("The answer is (c).", False, False, False),
    ("The answer is 3.", False, False, False),
    ("(C)", True, False, True),
    ("C", True, False, True),
    ("C.", True, False, True),
    ("Answer: C", True, False, True),
    ("Option C", True, False, True),
    ("Not (B) but (C)", True, False, True),
    ("(C) rather than (B)", False, False, False),
    ("**(C)**", True, False, True),
    # Forms that its first rule does not know and its later ones read all the same.
    ("The answer is: (C).", True, True, True),
    ("Answer is C", True, True, True),
    ("The answer is **C**.", True, True, True),
    ("The answer is **(C)**", True, True, True),
    # The last statement counts, not the first.
    ("The answer is (B). No, the answer is (C).", False, True, True),
    ("The answer is (C). No, the answer is (D).", True, False, False),
    # A word that begins with the letter is no answer.
    ("The answer is Carbon", True, False, False),
    ("Carbon", True, False, False),
    ("The answer is (C) and Dr. J. Bell agrees", True, True, False),
    ("I think it is (C), I said", False, False, True),
]


@pytest.mark.found
@pytest.mark.parametrize(("text", "theirs", "strict", "lenient"), LETTER)
def test_letter_is_mmlu_pros_but_for_words_and_corrections(text, theirs, strict, lenient):
    assert _mmlu_pro(text) == theirs
    grader = find("letter")
    assert (bool(grader.strict(text, "C")), bool(grader.lenient(text, "C"))) == (strict, lenient)
    assert bool(grader.strict(text, "The answer is (C).")) == strict


def _mmlu_pro(text: str) -> bool:
    """The rule of the comment above LETTER, of answer C."""
    after = re.search(r"answer is \(?([A-J])", text)
    after = after or next(iter(re.findall(r"[aA]nswer:\s*[A-J]", text)[-1:]), None)
    if after:
        return (after[1] if isinstance(after, re.Match) else after[-1]) == "C"
    return re.findall("[A-J]", text)[-1:] == ["C"]


# (text, strict, lenient), of answer 12.
NUMBER = [
    ("12", True, True),
    (" 12\n", True, True),
    ("12.0", True, True),
    ("12.00", True, True),
    ("012", True, True),
    ("1,2", True, True),  # commas are no digits, wherever they stand
    ("-12", False, False),
    ("13", False, False),
    ("12.5", False, False),
    ("120", False, False),
    ("+12", False, True),
    ("12.", False, True),
    ("$12", False, True),
    ("12 apples", False, True),
    ("It is 12.", False, True),
    ("The answer is 12", False, True),
    ("= 12", False, True),
    ("7 + 5 = 12", False, True),
    ("12 is 7 + 5", False, False),
    ("12 or 13", False, False),
    ("13, no, 12", False, True),
    ("**12**", False, True),
    (r"\boxed{12}", False, True),
    ("#### 12", False, True),
    ("1.2e1", False, False),
    ("twelve", False, False),
    ("XII", False, False),
    ("24/2", False, False),
    ("", False, False),
    ("12-", False, True),
    ("5-12", False, False),
]


@pytest.mark.found
@pytest.mark.parametrize(("text", "strict", "lenient"), NUMBER)
def test_number_alone_or_last(text, strict, lenient):
    grader = find("number")
    assert (bool(grader.strict(text, "12")), bool(grader.lenient(text, "12"))) == (strict, lenient)


# (text, strict, lenient), of answer "one two".
WORDS = [
    ("one two", True, True),
    (" one two ", True, True),
    ("one two\n", True, True),
    ("one  two", False, True),
    ("One two", False, True),
    ("ONE TWO", False, True),
    ("one two.", False, True),
    ("one, two", False, True),
    ("one-two", False, True),
    ("one\ntwo", False, True),
    ("**one** two", False, True),
    ("`one two`", False, True),
    ('"one two"', False, True),
    ("The answer is one two", False, True),
    ("one two three", False, True),
    ("zero one two three", False, True),
    ("1. one\n2. two", False, True),
    ("1) one 2) two", False, True),
    ("two one", False, False),
    ("one", False, False),
    ("two", False, False),
    ("one or two", False, False),
    ("one and then two", False, False),
    ("onetwo", False, False),
    ("one_two", False, False),
    ("ones two", False, False),
    ("none two", False, False),
    ("one twos", False, False),
    ("1 2", False, False),
    ("", False, False),
    ("\n", False, False),
]


@pytest.mark.found
@pytest.mark.parametrize(("text", "strict", "lenient"), WORDS)
def test_words_alone_or_contained(text, strict, lenient):
    grader, answer = find("words"), "one two"
    assert (bool(grader.strict(text, answer)), bool(grader.lenient(text, answer))) == (
        strict,
        lenient,
    )


GOLD = (
    'Action: find\nAction Input: {"name": "Ann", "age": 3}\nAction: send\nAction Input: {"to": "B"}'
)
# (text, right by SDFT's rule: the same names with their counts, and the same merged arguments; the
# same names alone).
TOOLS = [
    (GOLD, True, True),
    (GOLD.replace("\n", "\n\n"), True, True),
    (f"Thought: first.\n{GOLD}\nObservation: none", True, True),
    (GOLD.replace(": {", ":{"), True, True),
    (GOLD.replace("Action: ", "Action:"), True, True),
    (GOLD.replace('"Ann", "age": 3', '"Ann",\n "age": 3'), True, True),
    (GOLD.replace('"name": "Ann", "age": 3', '"age": 3, "name": "Ann"'), True, True),
    # The order of calls does not count, nor which call has an argument.
    (
        'Action: send\nAction Input: {"to": "B"}\nAction: find\n'
        'Action Input: {"name": "Ann", "age": 3}',
        True,
        True,
    ),
    (
        'Action: find\nAction Input: {"to": "B"}\nAction: send\n'
        'Action Input: {"name": "Ann", "age": 3}',
        True,
        True,
    ),
    ('Action: find\nAction: send\nAction Input: {"name": "Ann", "age": 3, "to": "B"}', True, True),
    (GOLD.replace('age": 3', 'age": 3.0'), True, True),
    # A later value of an argument replaces an earlier one.
    (GOLD + '\nAction Input: {"to": "C"}', False, True),
    (GOLD + '\nAction Input: {"more": 1}', False, True),
    (GOLD + "\nAction Input: {broken", True, True),
    (GOLD + "\nAction Input: {broken}", True, True),
    (GOLD.replace('"Ann"', '"ann"'), False, True),
    (GOLD.replace('"Ann"', '"Ann "'), False, True),
    (GOLD.replace('age": 3', 'age": "3"'), False, True),
    (GOLD.replace('age": 3', 'age": 4'), False, True),
    (GOLD.replace(', "age": 3', ""), False, True),
    (GOLD.replace('"age": 3', '"age": 3,'), False, True),
    (GOLD.replace('"', "'"), False, True),
    (GOLD.replace('"Ann"', '{"first": "Ann"}'), False, True),
    (GOLD.replace("Action Input", "Action input"), False, True),
    (GOLD.replace("Action: send", "Action: post"), False, False),
    (GOLD.replace("Action: send", "action: send"), False, False),
    (GOLD.replace("Action: send", "Action: send_all"), False, False),
    (GOLD.replace("Action: send", "Action: find"), False, False),
    (GOLD + "\nAction: send", False, False),
    ('Action: find\nAction Input: {"name": "Ann", "age": 3}', False, False),
    ('find(name="Ann", age=3)', False, False),
    ("", False, False),
]


@pytest.mark.found
@pytest.mark.parametrize(("text", "right", "named"), TOOLS)
def test_tools_is_sdfts(text, right, named):
    grader = find("tools")
    assert (bool(grader.strict(text, GOLD)), bool(grader.lenient(text, GOLD))) == (right, named)
