"""Tokenization, ordering and padding of examples."""

import torch
from bmt_trainer.data.encoding import batches, grouped_by_length, pad, render, training_rows
from bmt_trainer.data.examples import Example

from tests.support.tiny_model import byte_tokenizer


def user(text):
    return ({"role": "user", "content": text},)


def test_render_is_the_chat_template_or_plain_lines():
    tokenizer = byte_tokenizer()
    text = tokenizer.decode(render(tokenizer, Example(user("hi"), "")))
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.chat_template = None
    assert tokenizer.decode(render(tokenizer, Example(user("hi"), ""))) == "hi\n"


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


def test_grouping_by_length_takes_every_row_once_per_epoch():
    rows = [{"input_ids": [n] * (1 + n * 7 % 40)} for n in range(40)]
    order = grouped_by_length(rows, 4, 25, seed=1)
    lengths = [len(row["input_ids"]) for row in order]
    numbers = [row["input_ids"][0] for row in order]
    assert len(order) == 100
    assert sorted(numbers[:40]) == sorted(numbers[40:80]) == list(range(40))
    assert numbers[:40] != numbers[40:80]

    def padded(lengths):
        return sum(4 * max(lengths[at : at + 4]) for at in range(0, len(lengths), 4))

    assert padded(lengths) < 0.9 * padded([len(rows[n * 3 % 40]["input_ids"]) for n in range(100)])
    assert grouped_by_length(rows, 4, 25, seed=1) == order != grouped_by_length(rows, 4, 25, seed=2)


def test_pad_on_either_side():
    ids, attend = pad([[5, 6, 7], [8]], 0, "left")
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert attend.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, attend = pad([[5, 6, 7], [8]], 0, "right")
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert attend.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_batches_hold_every_row_once():
    rows = [[n] * n for n in (3, 1, 2)]
    made = list(batches(rows, 2, 0, torch.device("cpu")))
    assert [b["input_ids"].tolist() for b in made] == [[[1, 0], [2, 2]], [[3, 3, 3]]]
    assert sum(int(b["attention_mask"].sum()) for b in made) == 6
