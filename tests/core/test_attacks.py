"""Hostile files: each is refused with its typed error, quickly and with little memory."""

from __future__ import annotations

import json
import time
import tracemalloc

import bmt_core
import pytest

from tests.core.make_attacks import FOLDER, cases, manifest

MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
ATTACKS = sorted(name for name, expected in MANIFEST.items() if expected["error"])
GOOD = sorted(set(MANIFEST) - set(ATTACKS))
EXPANDED = ("bomb-of-escapes.bmt", "bomb-of-all-zeros.bmt")


def decode(name: str, data: bytes) -> bmt_core.Mask:
    """Arguments of `decode`; stricter limits for files that are valid without them."""
    limits = bmt_core.Limits(
        max_sparsity=0.05 if name.startswith("too-many-zeros") else 1.0,
        shapes={"w": (2, 4)} if name.startswith("base-has") else None,
    )
    expected = "cd" * 32 if name.startswith("base-unexpected") else None
    return bmt_core.decode(data, limits=limits, expect_base=expected)


def test_the_files_match_the_script():
    made = {f"{name}.bmt": case for name, case in cases().items()}
    assert manifest() == MANIFEST
    assert {p.name for p in FOLDER.glob("*.bmt")} == set(made)
    for name, (_, _, data) in made.items():
        assert (FOLDER / name).read_bytes() == data, f"{name}: run tests/core/make_attacks.py"


def subclasses(kind: type) -> set[str]:
    return {k.__name__ for k in kind.__subclasses__()}


def test_every_error_of_a_reader_has_a_file():
    needed = subclasses(bmt_core.FormatError) | subclasses(bmt_core.LimitError) | {"BaseMismatch"}
    assert {expected["error"] for expected in MANIFEST.values() if expected["error"]} == needed


@pytest.mark.parametrize("name", GOOD)
def test_valid_files_are_read(name):
    mask = bmt_core.load(FOLDER / name)
    assert bmt_core.decode(bmt_core.encode(mask)) == mask


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused(name):
    data = (FOLDER / name).read_bytes()
    expected = MANIFEST[name]
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(bmt_core.BmtError) as caught:
        decode(name, data)
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert type(caught.value).__name__ == expected["error"], caught.value
    assert caught.value.code == expected["code"]
    if expected["field"]:
        assert caught.value.field == expected["field"], caught.value
    assert len(str(caught.value)) < 1000
    # These frames are within the limits, so the reader expands them before it refuses them.
    assert peak < (8 << 20 if name in EXPANDED else 4 << 20)
    assert seconds < 2


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_headers_alone_raise_nothing_else(name):
    try:
        bmt_core.inspect(memoryview((FOLDER / name).read_bytes()))
    except bmt_core.BmtError:
        return
    assert MANIFEST[name]["error"] in {
        None,
        "PayloadError",
        "PositionsError",
        "DigestMismatch",
        "TooLarge",
        "TooManyZeros",
        "BaseMismatch",
    }
