"""Graders in the forms that reference graders accept or refuse, each written by hand.

math: math-verify itself where the two agree, and the value where math-verify is wrong. gsm8k: the
rule of verl's reward, text after the last `#### ` of the last 300 characters. bbeh: the rules of
BBEH's evaluator.
"""

from __future__ import annotations

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
