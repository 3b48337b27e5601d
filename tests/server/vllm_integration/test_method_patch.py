"""Replacement of methods of vLLM, once in a process."""

from __future__ import annotations

import inspect

import pytest
from bmt_server.vllm_integration.method_patch import patch_method


@pytest.fixture
def owner() -> type:
    class Parent:
        def inherited(self): ...

    class Owner(Parent):
        def step(self, count: int, *, fast: bool = False) -> tuple:
            return "step", count, fast

        @classmethod
        def configure(cls, config: str) -> tuple:
            return cls.__name__, config

    return Owner


def test_a_method_is_replaced_once_and_gets_its_original(owner):
    before = inspect.signature(owner.step)
    for _ in range(3):
        patch_method(owner, "step", lambda original, *args, **kwargs: [original(*args, **kwargs)])
    assert owner().step(2, fast=True) == [("step", 2, True)]
    assert inspect.signature(owner.step) == before
    assert owner.step.__name__ == "step"


def test_a_class_method_stays_one(owner):
    for _ in range(2):
        patch_method(owner, "configure", lambda original, cls, config: original(cls, config + "!"))
    assert owner.configure("a") == ("Owner", "a!")
    assert owner().configure("b") == ("Owner", "b!")


def test_only_the_class_that_defines_a_method_is_patched(owner):
    with pytest.raises(KeyError):
        patch_method(owner, "inherited", lambda original, self: None)
