"""Rows of Parquet and Arrow files and of `datasets`' own tables.

All rows of an Arrow struct have all of its keys, those of other rows as nulls: two tools with
different arguments each get the other's. Such nulls are left out, as TRL leaves them out; a null
that the data meant cannot be distinguished from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from bmt_trainer.data.rows import Rows
from bmt_trainer.errors import DataError

_BATCH = 512


def parquet_rows(stream: IO[bytes], name: str) -> Rows:
    """The rows of a Parquet file, read in batches. Raises pyarrow's errors and DataError."""
    file = pq.ParquetFile(stream)
    yield from _rows(file.iter_batches(_BATCH), file.schema_arrow, name)


def arrow_rows(stream: IO[bytes], name: str) -> Rows:
    """The rows of an Arrow file or stream. Raises pyarrow's errors and DataError."""
    magic = stream.read(6)
    stream.seek(0)
    if magic == b"ARROW1":
        file = pa.ipc.open_file(stream)
        batches: Iterator[Any] = (file.get_batch(i) for i in range(file.num_record_batches))
        yield from _rows(batches, file.schema, name)
    else:
        reader = pa.ipc.open_stream(stream)
        yield from _rows(reader, reader.schema, name)


def dataset_rows(data: Any, name: str) -> Rows:
    """The rows of a `datasets` data set, streamed or not."""
    number = 0
    for batch in data.with_format("arrow").iter(batch_size=_BATCH):
        for _, row in _rows([batch], batch.schema, name, data.features):
            yield f"{name}, row {number}", row
            number += 1


def _rows(
    batches: Iterable[Any], schema: Any, name: str, features: datasets.Features | None = None
) -> Rows:
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{name}: a column name is there twice ({', '.join(schema.names)})")
    if features is None:
        features = datasets.Features.from_arrow_schema(schema)
    # Columns that hold JSON as text, in which nulls are meant.
    encoded = [key for key, feature in features.items() if "Json(" in repr(feature)]
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            row = {key: without_nulls(value) for key, value in row.items()}
            for key in encoded:
                row[key] = datasets.Features({key: features[key]}).decode_example({key: row[key]})[
                    key
                ]
            yield f"{name}, row {number}", row
            number += 1


def without_nulls(value: Any) -> Any:
    """`value` without the null-valued keys of its objects, at any depth."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(v) for v in value]
    return value
