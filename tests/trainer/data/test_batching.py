"""Order and padding of tokenized rows."""

import pytest
import torch
from bmt_trainer.data.batching import SharedBatches, batches, collate_share, grouped_by_length, pad
from torch.utils.data import BatchSampler


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


@pytest.mark.found
@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("rows", [1, 5, 16, 21, 24])
def test_shares_of_all_processes_are_the_batches_of_one(rows, size, processes):
    order = torch.randperm(rows).tolist()
    shares = [SharedBatches(order, size, processes, rank) for rank in range(processes)]
    whole = list(BatchSampler(order, size * processes, drop_last=False))
    together = zip(*shares, strict=True)
    assert [[row for share in batch for row in share] for batch in together] == whole
    assert {len(share) for share in shares} == {len(whole)}
    assert all(len(batch) <= size for share in shares for batch in share)


def test_an_empty_share_is_a_row_without_labels():
    def collate(rows):
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids.clone()}

    shared = collate_share(collate, {"input_ids": [1, 2]})
    assert shared([{"input_ids": [3, 4]}])["labels"].tolist() == [[3, 4]]
    idle = shared([])
    assert idle["input_ids"].tolist() == [[1, 2]]
    assert idle["labels"].tolist() == [[-100, -100]]
