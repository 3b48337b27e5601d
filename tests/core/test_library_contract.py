"""The check of other libraries' private parts: each form of a seam, met and missed."""

from __future__ import annotations

import sys
import types
from abc import ABC, abstractmethod
from dataclasses import dataclass

import pytest
from bmt_core.library_contract import Seam, broken, minor_names, minor_version

NAME = "a_library"


class Engine:
    helper: object

    def __init__(self) -> None:
        self.running = []

    @classmethod
    def update(cls, config): ...

    def serve(self, request, *, tries=1): ...

    @property
    def paused(self) -> bool:
        return False

    def step(self) -> None:
        self.helper.load(1)
        self.helper.unload(1)


@dataclass
class Options:
    size: int


class Queue(ABC):
    @abstractmethod
    def pop(self): ...

    @abstractmethod
    def push(self, item): ...


@pytest.fixture(autouse=True)
def library(monkeypatch):
    module = types.ModuleType(NAME)
    module.Engine, module.Options, module.Queue = Engine, Options, Queue
    monkeypatch.setitem(sys.modules, NAME, module)


def seam(target: str = "Engine", **form) -> Seam:
    return Seam(f"{NAME}:{target}", "ours.py", **form)


@pytest.mark.parametrize(
    ("met", "missed", "named"),
    [
        (seam(), seam("Motor"), "no Motor in a_library"),
        (seam("Engine.step"), seam("Engine.stop"), "no Engine.stop in a_library"),
        (Seam(NAME, ""), Seam("a_librarian.parts", ""), "no module a_librarian.parts"),
        (
            seam("Engine.update", exactly=("cls", "config")),
            seam("Engine.update", exactly=("cls", "config", "device")),
            "a_library:Engine.update takes (cls, config), not (cls, config, device)",
        ),
        (
            seam("Engine.serve", accepts=("self", "request")),
            seam("Engine.serve", accepts=("self", "request", "deadline")),
            "a_library:Engine.serve takes no deadline",
        ),
        (
            seam("Engine.serve", accepts=("self", "request", "tries")),
            seam("Engine.serve", accepts=("self", "tries")),
            "a_library:Engine.serve needs request",
        ),
        # Set in a method, annotated, a property, a field without a default.
        (
            seam(attributes=("running", "helper", "paused")),
            seam(attributes=("waiting",)),
            "no waiting in a_library:Engine",
        ),
        (
            seam("Options", attributes=("size",)),
            seam("Options", attributes=("width",)),
            "no width in a_library:Options",
        ),
        (
            seam("Queue", abstract=("pop", "push", "peek")),
            seam("Queue", abstract=("pop",)),
            "a_library:Queue asks for a method push",
        ),
        (
            seam(reached=("helper", ("load", "unload"))),
            seam(reached=("helper", ("load",))),
            "a_library:Engine uses helper.unload",
        ),
        (
            seam(mentions=("tries=1",)),
            seam(mentions=("retries",)),
            "no word retries in a_library:Engine",
        ),
    ],
)
def test_a_breach_is_named(met, missed, named):
    assert broken([met]) == []
    assert [b.difference for b in broken([met, missed])] == [named]


def test_all_breaches_are_named_in_order_with_what_needs_them():
    seams = [seam("Motor"), seam(attributes=("a", "running", "b"))]
    assert [str(b) for b in broken(seams)] == [
        "no Motor in a_library (for ours.py)",
        "no a in a_library:Engine (for ours.py)",
        "no b in a_library:Engine (for ours.py)",
    ]
    assert seams[0].library == NAME


@pytest.mark.parametrize(
    ("version", "minor"),
    [
        ("0.32.0", (0, 32)),
        ("0.33.0rc1+cu130", (0, 33)),
        ("1.16.0.dev0", (1, 16)),
        ("1.9", (1, 9)),
        ("0.10.dev3", (0, 10)),
        ("0.1.dev9+g1a2b3c", None),
        ("dev", None),
        ("", None),
    ],
)
def test_the_minor_version_of_a_library(version, minor):
    assert minor_version(version) == minor


def test_versions_are_named_in_their_order():
    assert minor_names([(1, 16), (0, 9), (0, 32)]) == "0.9, 0.32, 1.16"
