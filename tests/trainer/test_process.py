"""Rank and allocator of the training process."""

import platform

import pytest
from bmt_trainer.process import is_main_process, keep_freed_memory, rank, world_size


def test_memory_is_kept_with_glibc():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, (1, 0, True)), ({"WORLD_SIZE": "8", "RANK": "3"}, (8, 3, False))],
)
def test_rank_and_world_size_are_the_launchers(monkeypatch, environment, expected):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (world_size(), rank(), is_main_process()) == expected
