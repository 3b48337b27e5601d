"""A row shown token by token."""

from __future__ import annotations

import io
import random
import re
from itertools import pairwise

import pytest
from bmt_trainer.console import Display
from bmt_trainer.data import preview
from bmt_trainer.data.encoding import Encoder
from bmt_trainer.data.examples import Example
from rich.console import Console

from tests.support.tiny_model import byte_tokenizer


def chatml():
    """A tokenizer in which both ends of a turn are tokens."""
    made = byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return made


def chat(*turns):
    roles = ("user", "assistant")
    return tuple({"role": roles[n % 2], "content": text} for n, text in enumerate(turns))


def encoded(tokenizer, *turns, learnt=()):
    *before, answer = turns
    [row] = Encoder(tokenizer).encode(Example(chat(*before), answer, learnt=learnt))
    return row.columns


def shown(row, tokenizer, *, color):
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=color, width=100, color_system="256" if color else None
    )
    display = Display(console)
    assert display.color is color
    display.show(preview.of_row(tokenizer, row, "first example", color=display.color))
    return file.getvalue()


def test_plain_text_marks_what_is_learnt():
    tokenizer = chatml()
    text = shown(encoded(tokenizer, "hi  there", "a b"), tokenizer, color=False)
    assert text == (
        "first example: 32 tokens, 4 learnt (between ⟦ and ⟧)\n"
        "<|im_start|>user↵hi  there<|im_end|>↵\n"
        "<|im_start|>assistant↵⟦a│·│b│<|im_end|>⟧\n"
    )


def test_each_learnt_turn_is_marked():
    tokenizer = chatml()
    row = encoded(tokenizer, "q", "one", "r", "two", learnt=(1,))
    text = shown(row, tokenizer, color=False)
    assert re.findall("⟦(.*?)⟧", text)[1:] == ["o│n│e│<|im_end|>", "t│w│o│<|im_end|>"]


def test_colors_mark_without_signs():
    tokenizer = chatml()
    text = shown(encoded(tokenizer, "hi", "ab"), tokenizer, color=True)
    assert "⟦" not in text
    learnt = re.findall(r"\x1b\[[0-9;]*48;5;(\d+)m([^\x1b]*)", text)
    assert [piece for _, piece in learnt] == ["a", "b", "<|im_end|>"]
    tones = [tone for tone, _ in learnt]
    assert all(one != other for one, other in pairwise(tones))


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_terminals_without_colors_get_signs(monkeypatch, variable):
    console = Console(
        file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm-256color", **variable}
    )
    assert not Display(console).color


def test_characters_of_several_tokens_are_one_piece():
    tokenizer = chatml()
    text = shown(encoded(tokenizer, "é", "日😀"), tokenizer, color=False)
    assert "⟦日│😀│<|im_end|>⟧" in text
    assert "\ufffd" not in text


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("\x1b[31mred", "\\u001b[31mred"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u2028b", "a\\u2028b"),
        ("a\u00a0b", "a\\u00a0b"),
        ("\r\n", "\\u000d↵"),
        ("⟦x⟧│·↵", "\\u27e6x\\u27e7\\u2502\\u00b7\\u21b5"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_nothing_invisible_and_no_sign_of_the_text_itself(text, sign):
    assert preview.visible(text, spaces=True) == sign
    tokenizer = chatml()
    output = shown(encoded(tokenizer, text, "ok"), tokenizer, color=False)
    assert output.count("⟦") == output.count("⟧") == 2  # in the heading, and the answer
    assert "\x1b" not in output


def test_long_rows_stay_small_and_count_what_is_left_out():
    tokenizer = chatml()
    words = " ".join(f"w{n}" for n in range(3000))
    row = encoded(tokenizer, words, words)
    text = shown(row, tokenizer, color=False)
    assert len(text.splitlines()) <= 15
    assert len(text) < 4000
    left_out = [int(n.replace(",", "")) for n in re.findall(r"… ([\d,]+) tokens", text)]
    assert len(left_out) == 2
    assert all(count > 10_000 for count in left_out)
    assert text.rstrip().endswith("w│2│9│9│9│<|im_end|>⟧")
    many = encoded(tokenizer, *["x"] * 80, learnt=tuple(range(1, 78, 2)))
    text = shown(many, tokenizer, color=False)
    assert len(text.splitlines()) <= 15
    assert "of them learnt" in text
    assert text.count("⟦") == text.count("⟧")


def test_the_pieces_are_the_whole_text_in_order():
    tokenizer = chatml()
    draw = random.Random(0)
    letters = "aé日😀 \n\t<|im_end|>"
    for _ in range(50):
        turns = ["".join(draw.choices(letters, k=draw.randint(1, 12))).strip() or "x"] * 2
        turns = [t.replace("<|im_end|>", "") for t in turns]
        row = encoded(tokenizer, *turns)
        made = preview.pieces(tokenizer, row["input_ids"], row["completion_mask"])
        assert "".join(p.text for p in made) == tokenizer.decode(row["input_ids"])
        assert sum(p.count for p in made) == len(row["input_ids"])
        learnt = sum(p.count for p in made if p.learnt)
        assert learnt == sum(row["completion_mask"])
