"""Splits of a data set and slices of them, as `datasets` writes them: `train[:50%]+test`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from datasets import ReadInstruction

from bmt_trainer.data.rows import Rows
from bmt_trainer.errors import DataError


def sliced(readers: Mapping[str, Callable[[], Rows]], spec: str, name: str) -> Rows:
    """The rows of the splits and slices that `spec` names.

    readers: of the rows of each split; only a slice is read ahead, to count its split. Raises
    DataError.
    """
    if spec == "all":
        spec = "+".join(readers)
    for part in spec.split("+"):
        split = re.split(r"[\[(]", part, maxsplit=1)[0].strip()
        if split not in readers:
            raise DataError(f"{name} has no split {split!r}; it has {', '.join(readers)}")
        if split == part.strip():
            yield from readers[split]()
        else:
            yield from _slice(list(readers[split]()), part.strip(), split, name)


def _slice(
    rows: list[tuple[str, object]], part: str, split: str, name: str
) -> Iterator[tuple[str, object]]:
    try:
        [absolute] = ReadInstruction.from_spec(part).to_absolute({split: len(rows)})
    except (ValueError, AssertionError, AttributeError) as error:
        raise DataError(f"{name}: split {part!r} is not NAME, or NAME[FROM:TO] ({error})") from None
    chosen = rows[absolute.from_ or 0 : len(rows) if absolute.to is None else absolute.to]
    if not chosen:
        raise DataError(f"{name}: split {part!r} takes none of the {len(rows)} rows")
    yield from chosen
