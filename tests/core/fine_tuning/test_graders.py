"""Graders of reinforcement jobs: OpenAI's shapes, and nothing that runs code."""

from __future__ import annotations

import pytest
from bmt_core import GraderError
from bmt_core.fine_tuning import graders
from bmt_core.fine_tuning.formulas import Formula
from bmt_core.fine_tuning.templates import Template
from hypothesis import given
from hypothesis import strategies as st
from openai.types.graders import (
    MultiGrader,
    PythonGrader,
    ScoreModelGrader,
    StringCheckGrader,
    TextSimilarityGrader,
)

CHECK = {
    **{"type": "string_check", "name": "s", "operation": "eq"},
    **{"input": "{{ sample.output_text }}", "reference": "{{item.answer}}"},
}
LIKE = {
    **{"type": "text_similarity", "name": "t", "evaluation_metric": "fuzzy_match"},
    **{"input": "{{ sample.output_text }}", "reference": "{{item.answer}}"},
}
MODEL = {
    **{"type": "score_model", "name": "j", "model": "tiny", "range": [0.0, 10.0]},
    "input": [
        {"role": "system", "content": "Grade.", "type": "message"},
        {"role": "user", "content": {"type": "input_text", "text": "{{ sample.output_text }}"}},
        {"role": "user", "content": [{"type": "output_text", "text": "a"}, "b"]},
    ],
    "sampling_params": {"temperature": 0.5, "max_completions_tokens": 8, "top_p": None},
}
CODE = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}
MULTI = {
    **{"type": "multi", "name": "m", "calculate_output": "0.5 * a + min(b, 1) ^ 2"},
    "graders": {"a": CHECK, "b": LIKE},
}
TYPES = {
    StringCheckGrader: CHECK,
    TextSimilarityGrader: LIKE,
    ScoreModelGrader: MODEL,
    PythonGrader: CODE,
    MultiGrader: {**MULTI, "graders": CHECK, "calculate_output": "s"},
}


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_what_the_openai_package_sends_is_read(kind):
    sent = kind.construct(**TYPES[kind]).model_dump(mode="json", exclude_unset=True)
    assert graders.parse(sent).name == TYPES[kind]["name"]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (None, "grader"),
        ([], "grader"),
        ({}, "grader.type"),
        ({"type": "label_model", "name": "l"}, "grader.type"),
        ({**CHECK, "operation": "matches"}, "grader.operation"),
        ({**CHECK, "pass_threshold": 1}, "grader.pass_threshold"),
        ({**CHECK, "reference": None}, "grader.reference"),
        ({**CHECK, "name": ""}, "grader.name"),
        ({**CHECK, "input": "x" * 20_000}, "grader.input"),
        ({**LIKE, "evaluation_metric": "meteor"}, "grader.evaluation_metric"),
        ({**LIKE, "evaluation_metric": "cosine"}, "grader.evaluation_metric"),
        ({**LIKE, "evaluation_metric": ["bleu"]}, "grader.evaluation_metric"),
        ({**CODE, "image_tag": "x"}, "grader.image_tag"),
        ({**CODE, "source": 1}, "grader.source"),
        ({**CODE, "source": "#" * 60_000}, "grader"),
        ({**MODEL, "range": [1, 0]}, "grader.range"),
        ({**MODEL, "range": [0, float("nan")]}, "grader"),
        ({**MODEL, "input": []}, "grader.input"),
        ({**MODEL, "input": [{"role": "tool", "content": "x"}]}, "grader.input[0].role"),
        (
            {**MODEL, "input": [{"role": "user", "content": {"type": "input_image"}}]},
            "grader.input[0].content",
        ),
        (
            {**MODEL, "sampling_params": {"reasoning_effort": "low"}},
            "grader.sampling_params.reasoning_effort",
        ),
        ({**MODEL, "sampling_params": {"temperature": 3}}, "grader.sampling_params.temperature"),
        ({**MULTI, "graders": {}}, "grader.graders"),
        ({**MULTI, "graders": {"a b": CHECK}}, "grader.graders.a b"),
        ({**MULTI, "graders": {"a": MULTI}}, "grader.graders.a.type"),
        ({**MULTI, "calculate_output": "a + c"}, "grader.calculate_output"),
        ({**MULTI, "calculate_output": None}, "grader.calculate_output"),
    ],
)
def test_a_grader_that_is_not_valid_is_refused_by_field(value, field):
    with pytest.raises(GraderError) as refused:
        graders.parse(value)
    assert refused.value.field == field
    assert str(refused.value).startswith(field)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "a.real",
        "a[0]",
        "[a]",
        "a if b else a",
        "(lambda: a)()",
        "a < b",
        "a and b",
        "f'{a}'",
        "True * a",
        "a // b",
        "a % b",
        "a | b",
        "~a",
        "(x := a)",
        "max(a, key=b)",
        "max(*a)",
        "print(a)",
        "min()+a",
        "sqrt(a, b)",
        "1",
        "",
        "a +",
        "a\nb",
        "(" * 250 + "a" + ")" * 250,
        "-" * 400 + "a",
        "[" * 180 + "]" * 180,
        "a" + ".a" * 240,
        "9" * 30 + "*a",
        "1e999*a",
        "a;b",
    ],
)
def test_a_formula_is_arithmetic_and_nothing_else(text):
    with pytest.raises(GraderError):
        Formula.parse(text, {"a", "b"}, "f")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a", 2.0),
        ("2 ^ 3 ^ a - b", 508.0),
        ("-a ^ 2", -4.0),
        ("max(a, b, 7) / min(a, b)", 3.5),
        ("floor(b / a) + ceil(b / a) + abs(0 - a)", 6.0),
        ("exp(0) + log(1) + sqrt(b - a + 1) + a*0", 1 + 3**0.5),
        ("(a + b) * .5e0", 3.0),
    ],
)
def test_a_formula_is_computed_as_it_is_written(text, wanted):
    assert Formula.parse(text, {"a", "b"}, "f").value({"a": 2, "b": 4}) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "text", ["1 / a", "log(a)", "9^9^9^9 + a", "(0-1)^0.5 + a", "exp(999) + a"]
)
def test_a_formula_without_a_number_names_its_values(text):
    with pytest.raises(GraderError, match="a = 0"):
        Formula.parse(text, {"a"}, "f").value({"a": 0.0})


@given(st.text(alphabet="ab019.+-*/^(), minax", max_size=40))
def test_no_formula_ends_in_another_error(text):
    try:
        number = Formula.parse(text, {"a", "b"}, "f").value({"a": 0.5, "b": 2.0})
    except GraderError:
        return
    assert isinstance(number, float)


def test_templates_read_columns_and_the_answer():
    item = {"a": {"b": ["x", {"c": 1.5}]}, "n": None, "t": "{{ item.secret }}", "secret": "no"}
    text = "{{item.a.b[0]}}|{{ item.a.b[1].c }}|{{item.n}}|{{item.t}}|{{sample.output_text}}|}}"
    template = Template.parse(text, "f")
    # What is filled in is text: braces of a row or of an answer are read by no one.
    filled = template.render(item, "{{item.secret}}")
    assert filled == "x|1.5|null|{{ item.secret }}|{{item.secret}}|}}"
    for path in ("item.b", "item.a.b[2]", "item.n.x", "item.secret.upper", "item.a.b.x"):
        with pytest.raises(GraderError, match="the row has no"):
            Template.parse(f"{{{{ {path} }}}}", "f").check(item)
    with pytest.raises(GraderError, match="more than"):
        Template.parse("{{ item.x }}" * 60, "f").render({"x": "y" * 100_000}, "")


@pytest.mark.parametrize(
    "text",
    [
        "{{ item.x | upper }}",
        "{{ item.x.__class__() }}",
        "{{ item['x'] }}",
        "{{ config }}",
        "{{ item }}",
        "{{ sample.output_json.x }}",
        "{{ sample.output_tools }}",
        "{{ item.x + 1 }}",
        "{{ item.x",
        "{% for x in y %}",
        "{# x #}",
        "{{ item.x }}" * 65,
        7,
    ],
)
def test_a_template_is_a_path_and_nothing_else(text):
    with pytest.raises(GraderError):
        Template.parse(text, "f")
