"""Rank and allocator of the training process."""

import platform
from pathlib import Path

import bmt_trainer
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


# Where the kernel groups tasks by session, a new one has the weight of any other, and a job that
# trains with what a server leaves would take half of it (sched(7), autogroup).
GIVES_ITSELF_ITS_PRIORITY = {"evaluation/sandbox/programs.py"}


@pytest.mark.found
def test_programs_of_the_trainer_stay_in_its_session():
    package = Path(bmt_trainer.__file__).parent
    starts = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "start_new_session" in (text := path.read_text()) or "setsid(" in text
    }
    assert starts == GIVES_ITSELF_ITS_PRIORITY
