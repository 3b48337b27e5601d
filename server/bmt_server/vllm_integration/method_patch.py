"""Replacement of one method of vLLM, once in a process. Imports no vLLM."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

_MARK = "bmt_patch"


def patch_method(owner: type, name: str, call: Callable[..., Any]) -> None:
    """Let `call` answer for the method `name` that the class `owner` itself defines.

    call: gets the original function, then the arguments of the call, with `self` or `cls`. Does
    nothing for a method that is patched already, because vLLM may load plugins several times in a
    process. The contract, checked at each of them, finds the original's signature. Raises KeyError.
    """
    found = owner.__dict__[name]
    original = getattr(found, "__func__", found)
    if getattr(original, _MARK, False):
        return

    @wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return call(original, *args, **kwargs)

    setattr(patched, _MARK, True)
    setattr(owner, name, classmethod(patched) if isinstance(found, classmethod) else patched)
