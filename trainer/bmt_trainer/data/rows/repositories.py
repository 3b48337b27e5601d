"""Rows of data sets on the Hugging Face Hub, or of their cached copies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub

from bmt_trainer import hub
from bmt_trainer.data.rows import Rows, local_files, tables
from bmt_trainer.data.rows.files import reason
from bmt_trainer.errors import DataError

OPTIONS = ("config", "split", "revision")


def of_hub(
    name: str,
    options: Mapping[str, str],
    *,
    default_split: str = "train",
    streaming: bool = False,
    otherwise: str,
) -> Rows:
    """The rows of a Hub data set. Raises DataError, in two seconds without a network.

    options: config, split, revision; otherwise: other readings of `name` that the caller has ruled
    out, for the error message.
    """
    more: dict[str, Any] = {"streaming": True} if streaming else {}
    if "revision" in options:
        more["revision"] = options["revision"]
    offline = hub.unreachable()
    try:
        with hub.cached_only(offline is not None):
            data = datasets.load_dataset(
                name, options.get("config"), split=options.get("split", default_split), **more
            )
    except Exception as error:  # the library raises whatever its readers and its transport raise
        if offline is not None:
            why = f"the Hub cannot be asked ({offline}) and there is no cached copy of it"
        else:
            why = f"the Hub does not provide it as a data set ({reason(error)})"
        here = local_files.missing(name)
        near = f"; {here}" if "near it" in here else ""
        raise DataError(f"{name!r} is {otherwise}, and {why}{near}") from error
    if offline is not None and "revision" in options:
        _check_revision(data, name, options["revision"], offline)
    return _guarded(tables.dataset_rows(data, name), name)


def commit_of(name: str, revision: str | None) -> str:
    """The commit of a data set of the Hub, as `hub.commit`."""
    return hub.commit(name, "dataset", revision)


def _check_revision(data: Any, name: str, revision: str, offline: str) -> None:
    """Raise DataError if the cached `data` is of another revision: `datasets` takes the newest."""
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    reference = cache / f"datasets--{name.replace('/', '--')}" / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folders = {Path(file["filename"]).parent.name for file in data.cache_files}
    if folders != {commit}:
        raise DataError(
            f"{name}: the Hub cannot be asked ({offline}), and the cached copy is not known to be "
            f"of revision {revision}; leave it out to take the copy ({', '.join(folders)})"
        )


def _guarded(rows: Rows, name: str) -> Rows:
    """The rows; errors of the transport, which a stream meets late, as DataError."""
    try:
        yield from rows
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(f"{name} cannot be read ({reason(error)})") from error
