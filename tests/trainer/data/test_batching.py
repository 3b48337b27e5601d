"""Order and padding of tokenized rows."""

import torch
from bmt_trainer.data.batching import batches, grouped_by_length, pad


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
