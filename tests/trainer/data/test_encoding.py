"""Tokenization of examples."""

import json
import re
from pathlib import Path

import pytest
import trl
from bmt_trainer.data.encoding import (
    Encoder,
    complete_special_tokens,
    end_of_turn,
    render,
)
from bmt_trainer.data.examples import Example
from bmt_trainer.data.fitting import fit
from bmt_trainer.data.row_formats import example_of
from bmt_trainer.data.sources import load
from bmt_trainer.errors import DataError, ModelError
from bmt_trainer.models import load_tokenizer

from tests.support.chats.templates import FAMILIES, tokenizer_of
from tests.support.tiny_model import byte_tokenizer

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "q"}
REPLY = {"role": "assistant", "content": "a"}


def user(text):
    return ({"role": "user", "content": text},)


def test_render_is_the_chat_template_or_plain_lines():
    tokenizer = byte_tokenizer()
    text = tokenizer.decode(render(tokenizer, Example(user("hi"), "")))
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.chat_template = None
    assert tokenizer.decode(render(tokenizer, Example(user("hi"), ""))) == "hi\n"


def training_rows(tokenizer, examples, max_length):
    rows = [row.columns for example in examples for row in Encoder(tokenizer).encode(example)]
    return fit(rows, max_length).rows


def test_the_loss_covers_only_the_answer_and_the_end_of_turn():
    tokenizer = byte_tokenizer()
    examples = [Example(user("hi"), "yes"), Example(user("x" * 99), "no")]
    [row] = training_rows(tokenizer, examples, 60)  # the second is longer
    learned = [t for t, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
    assert tokenizer.decode(learned) == "yes<|im_end|>"
    assert row["input_ids"][: -len(learned)] == render(tokenizer, Example(user("hi"), ""))
    size = len(row["input_ids"])
    assert len(training_rows(tokenizer, examples[:1], size)) == 1
    assert not training_rows(tokenizer, examples[:1], size - 1)


def separately(tokenizer, example, end):
    """Prompt and answer, each tokenized alone, then the token that ends the answer."""
    text = tokenizer.apply_chat_template(
        [dict(m) for m in example.prompt], add_generation_prompt=True, tokenize=False
    )
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    return [*prompt, *answer, tokenizer.convert_tokens_to_ids(end)], len(prompt)


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_chats_are_tokenized_as_prompt_answer_and_end(name):
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    for example in load("task:reverse-words", heldout=0, train=30).train:
        [row] = Encoder(tokenizer).encode(example)
        ids, context = separately(tokenizer, example, family.end)
        assert row.input_ids == ids
        assert row.completion_mask == [0] * context + [1] * (len(ids) - context)


def test_the_real_models_rows_are_prompt_answer_and_eos(smol):
    tokenizer = load_tokenizer(smol)
    for dataset in ("task:arithmetic", "task:sort-numbers", "task:initials"):
        for example in load(dataset, heldout=0, train=50).train:
            [row] = Encoder(tokenizer).encode(example)
            assert row.input_ids == separately(tokenizer, example, tokenizer.eos_token)[0]


@pytest.mark.found
@pytest.mark.parametrize("eos", ["<eos>", "<|endoftext|>"])
@pytest.mark.parametrize("name", ["gemma", "chatml"])
def test_a_turn_ends_as_the_template_ends_it_whatever_eos_is(name, eos):
    tokenizer = tokenizer_of(name)
    tokenizer.add_special_tokens({"additional_special_tokens": [eos]})
    tokenizer.eos_token = eos
    [row] = Encoder(tokenizer).encode(Example((USER,), "a"))
    end = tokenizer.convert_tokens_to_ids(FAMILIES[name].end)
    assert row.input_ids[-1] == end == end_of_turn(tokenizer)
    assert row.pieces[-1] == (f"a{FAMILIES[name].end}", True)


@pytest.mark.parametrize(
    ("row", "counted"),
    [
        ({"prompt": "q", "completion": json.dumps([REPLY])}, 1),
        ({"prompt": json.dumps([USER]), "completion": "a"}, 1),
        ({"prompt": "q", "completion": '[{"from": "gpt", "value": "a"}]'}, 1),
        ({"prompt": "q", "completion": "[1, 2]"}, 0),
        ({"prompt": "q", "completion": "[]"}, 0),
        ({"prompt": "q", "completion": "[" * 99_999}, 0),
        ({"prompt": "q", "completion": '[{"name": "f", "content": "a"}]'}, 0),
        ({"messages": json.dumps([USER, REPLY])}, 0),
    ],
)
def test_a_chat_that_is_text_is_said(row, counted):
    """It may be meant as text, so it is learnt as such."""
    encoder = Encoder(byte_tokenizer())
    encoder.encode(example_of(row, "rows.csv, line 2"))
    assert len(encoder.lines()) == counted
    assert all("written as JSON text" in line for line in encoder.lines())


def test_templates_that_trim_are_counted():
    encoder = Encoder(tokenizer_of("llama"))
    encoder.encode(example_of({"prompt": "q", "completion": " a\n"}, "x"))
    encoder.encode(example_of({"prompt": "q", "completion": "a"}, "x"))
    [line] = encoder.lines()
    assert "trims white space" in line
    assert "1 time" in line


@pytest.mark.found
@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([SYSTEM, USER, REPLY], r"turn 1 \(system\): .*System role not supported.*--system"),
        ([USER, USER, REPLY], r"turn 2 \(user\): .*must alternate"),
        ([USER, REPLY, REPLY], r"turn 3 \(assistant\): .*must alternate"),
    ],
)
def test_a_template_that_refuses_a_chat_is_an_error_of_the_row(messages, part):
    example = example_of({"messages": messages}, "x.jsonl, line 7")
    with pytest.raises(DataError, match=rf"^x\.jsonl, line 7: {part}"):
        Encoder(tokenizer_of("gemma")).encode(example)
    if len(messages) == 3 and messages[1] is USER:
        with pytest.raises(DataError, match=rf"^x\.jsonl, line 7: {part}"):
            render(tokenizer_of("gemma"), example)


# Parts of a template's text with which it loses something, and the field that is named then.
LOSSES = [
    ("{{ m.content }}", "{{ m.content | replace('a', '') }}", r"turn 3 .*content: .*changes"),
    ("{{ m.content }}", "{{ m.content[:1] }}", r"turn 1 \(system\), content"),
    ("{{ m.content }}", "{{ m.content | lower }}", r"turn 1 \(system\), content"),
    ("{% for m in messages %}", "{% for m in messages[-2:] %}", "turn 3 .*turns before it"),
    ("{{ m.content }}", "{% if m.role != 'user' %}{{ m.content }}{% endif %}", r"turn 2 \(user\)"),
    ("{{ t | tojson }}", "{{ t.function.name }}", r"tools\[0\]\.function\.parameters"),
    ("{{ t | tojson }}", "", r"tools\[0\]\.function\.name"),
    ("{{ c.function | tojson }}", "{{ c.function.name }}", r"turn 3 .*calls\[0\].*\.arguments"),
    ("{{ c.function | tojson }}", "{{ c.function.arguments }}", r"turn 3 .*calls\[0\].*\.name"),
    ("{{ c.function | tojson }}", "{{ c.function | tojson | replace('99', '') }}", "turn 3 .*99"),
    ("{{ m.reasoning_content }}", "", "turn 3 .*reasoning_content"),
]


@pytest.mark.parametrize(("there", "then", "part"), LOSSES)
def test_what_a_template_loses_is_named(there, then, part):
    tokenizer = tokenizer_of("chatml-tools")
    function = {"name": "f", "parameters": {"type": "object", "properties": {"p": {}}}}
    call = {"function": {"name": "f", "arguments": {"p": [99]}}}
    row = {
        "messages": [SYSTEM, USER, {**REPLY, "tool_calls": [call], "thinking": "t"}],
        "tools": [{"type": "function", "function": function}],
    }
    example = example_of(row, "x.jsonl, line 7")
    encoder = Encoder(tokenizer)
    encoder.encode(encoder.checked(example))
    assert there in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(there, then)
    encoder = Encoder(tokenizer)
    with pytest.raises(DataError, match=rf"^x\.jsonl, line 7: {part}"):
        encoder.encode(encoder.checked(example))


def test_a_template_that_changes_earlier_turns_makes_a_row_of_each():
    encoder = Encoder(tokenizer_of("qwen"))
    first, second = ({**REPLY, "content": c, "thinking": t} for c, t in (("a", "s"), ("b", "t")))
    rows = encoder.encode(example_of({"messages": [USER, first, USER, second]}, "x"))
    assert [row.pieces[-1][0] for row in rows] == [
        "<think>s</think>\na<|im_end|>",
        "<think>t</think>\nb<|im_end|>",
    ]
    assert "s</think>" not in rows[1].pieces[0][0]
    assert any("one training row per learnt turn" in line for line in encoder.lines())


#: The templates that TRL knows, of some thirty families.
KNOWN = sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja"))
TOKEN = re.compile(
    r"<\|[\w▁ ]+\|>|<｜[\w▁]+｜>|</?s>|<(?:start|end)_of_\w+>|<\|?turn\|?>|</?think>"
)


@pytest.mark.parametrize("path", KNOWN, ids=lambda path: path.stem)
def test_templates_in_use_teach_the_turns_or_name_the_field(path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = path.read_text()
    found = sorted(set(TOKEN.findall(tokenizer.chat_template)))
    tokenizer.add_special_tokens({"additional_special_tokens": [*found, "<E>", "<B>"]})
    tokenizer.eos_token, tokenizer.bos_token = "</s>" if "</s>" in found else "<E>", "<B>"
    first, second = ({**REPLY, "content": f"answer {n}"} for n in (1, 2))
    call = {"id": "abcdefgh1", "function": {"name": "fun", "arguments": {"city": "Oslo", "n": 7}}}
    calling = {**REPLY, "content": None, "tool_calls": [call]}
    result = {"role": "tool", "content": "rain", "tool_call_id": "abcdefgh1"}
    tools = [{"type": "function", "function": {"name": "fun", "description": "F."}}]
    rows = {
        ("answer 1", "answer 2"): {"messages": [USER, first, USER, second]},
        ("thought", "answer 1"): {"messages": [USER, {**first, "thinking": "thought"}]},
        ("fun", "Oslo", "7", "answer 1"): {
            "messages": [USER, calling, result, first],
            "tools": tools,
        },
    }
    encoder = Encoder(tokenizer)
    for number, (said, row) in enumerate(rows.items()):
        try:
            encoded = encoder.encode(encoder.checked(example_of(row, "line 7")))
        except DataError as error:
            # Every family has two turns; functions and thoughts are not everywhere.
            assert number
            assert re.match(r"line 7: (turn \d|tools\[0\])", str(error)), error  # noqa: PT017
            continue
        learnt = "".join(text for part in encoded for text, on in part.pieces if on)
        at = 0
        for text in said:
            at = learnt.index(text, at) + len(text)
        for part in encoded:
            assert part.pieces[-1][1]
            last = tokenizer.decode(part.input_ids[-1])
            assert last in (*found, "<E>", "<|im_end|>"), part.pieces[-1]
            assert "rain" not in "".join(text for text, on in part.pieces if on)


def test_the_template_reads_the_arguments_of_its_row():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template += "{% if add_generation_prompt and brief %}Briefly: {% endif %}"
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m['content'] }}",
        "{% if m.role == 'assistant' and brief %}Briefly: {% endif %}{{ m['content'] }}",
    )
    row = {"messages": [USER, REPLY], "chat_template_kwargs": {"brief": True}}
    [encoded] = Encoder(tokenizer).encode(example_of(row, "x"))
    assert encoded.pieces[0][0].endswith("assistant\nBriefly: ")
    assert encoded.pieces[1] == ("a<|im_end|>", True)


@pytest.mark.parametrize("role", ["developer"])
def test_a_developers_message_is_a_system_message_where_there_is_no_such_role(role):
    row = {"messages": [{"role": role, "content": "s"}, USER, REPLY]}
    [encoded] = Encoder(tokenizer_of("chatml")).encode(example_of(row, "x"))
    assert encoded.pieces[0][0].startswith("<|im_start|>system\ns<|im_end|>")


@pytest.mark.found
def test_a_tokenizer_without_eos_or_padding_gets_them_of_its_template_or_an_error():
    tokenizer = tokenizer_of("gemma")
    tokenizer.eos_token = tokenizer.pad_token = None
    complete_special_tokens(tokenizer)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<end_of_turn>", "<end_of_turn>")
    tokenizer.chat_template = tokenizer.eos_token = None
    with pytest.raises(ModelError, match="eos_token"):
        complete_special_tokens(tokenizer)
    with pytest.raises(DataError, match="line 7: nothing ends an answer"):
        Encoder(tokenizer).encode(example_of({"prompt": "q", "completion": "a"}, "line 7"))


def test_a_prompt_without_tokens_cannot_be_answered():
    tokenizer = byte_tokenizer()
    row = {"prompt": "", "completion": "a"}
    Encoder(tokenizer).checked(example_of(row, "line 7"))
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="line 7: prompt: has no tokens"):
        Encoder(tokenizer).checked(example_of(row, "line 7"))


def test_an_end_of_turn_within_an_answer_is_refused():
    with pytest.raises(DataError, match=r"turn 2 .*content: contains '<\|im_end\|>'"):
        Encoder(byte_tokenizer()).encode(Example((USER,), "a<|im_end|>b"))


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LINES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"


@pytest.mark.found
@pytest.mark.parametrize(
    ("template", "learnt"),
    [
        (TURNS + "<|im_start|>assistant{{ '\\n' }}", ["a<|im_end|>"] * 2),
        (LINES + "assistant:", [" a<|im_end|>"] * 2),
    ],
)
def test_a_header_after_an_answer_is_not_learnt(template, learnt):
    """Templates without `add_generation_prompt` open an answer after each chat."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    example = example_of({"messages": [USER, REPLY, USER, REPLY]}, "x.jsonl, line 7")
    found = []
    for row in Encoder(tokenizer).encode(example):
        pieces = [text for text, on in row.pieces if on]
        # The tokenizer's eos is a piece of its own.
        found += ["".join(pieces)] if pieces[-1] == tokenizer.eos_token else pieces
    assert found == learnt


@pytest.mark.found
@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for i in range(99999999) %}{% endfor %}", "Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ raise_exception('a\nb') }}", "a b"),
    ],
)
def test_whatever_a_template_raises_is_an_error_of_the_row(template, says):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template + TURNS
    example = example_of({"messages": [USER, REPLY]}, "x.jsonl, line 7")
    with pytest.raises(DataError, match=rf"^x\.jsonl, line 7: .*{says}") as raised:
        Encoder(tokenizer).encode(example)
    assert "\n" not in str(raised.value)
