"""The memory of the machine, within the limits of control groups."""

from __future__ import annotations

import os

import pytest
import torch
from bmt_trainer.methods.memory.machine import memory_of

CPU = torch.device("cpu")
GIB = 2**30
WHOLE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def host(root, groups, limits):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in limits.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


@pytest.mark.found
@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        # Version 2: a container sees its own group at the top; a service's is below a slice.
        ("0::/\n", {"memory.max": GIB}, GIB),
        ("0::/a/b\n", {"a/b/memory.max": GIB, "a/memory.max": "max"}, GIB),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": GIB}, GIB),
        ("0::/a/b\n", {"a/b/memory.max": 2 * GIB, "a/memory.max": GIB}, GIB),
        ("0::/kubepods/pod1/c2\n", {"memory.max": GIB}, GIB),
        ("0::/\n", {"memory.max": "max"}, WHOLE),
        # More than there is: version 1 writes the greatest number for no limit.
        (
            "3:cpu,cpuacct:/x\n4:memory:/a\n",
            {"memory/a/memory.limit_in_bytes": 9223372036854771712},
            WHOLE,
        ),
        ("4:cpuset,memory:/a:b\n", {"memory/a:b/memory.limit_in_bytes": GIB}, GIB),
        ("", {}, WHOLE),
    ],
)
def test_the_lowest_limit_holds(tmp_path, groups, limits, expected):
    assert memory_of(CPU, host(tmp_path, groups, limits)) == expected


def test_a_system_without_control_groups_has_its_memory(tmp_path):
    assert memory_of(CPU, tmp_path) == WHOLE


def test_this_machine_has_some():
    assert 0 < memory_of(CPU) <= WHOLE
