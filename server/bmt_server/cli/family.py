"""`bmt-server family`: write down which quantized checkpoints were made from a base."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import bmt_core
import typer

from bmt_server.cli.common import AsJson, fail, say, with_connection
from bmt_server.errors import ApiError
from bmt_server.quantization.family import Family, FamilyError
from bmt_server.settings import SettingsError

if TYPE_CHECKING:
    from bmt_server.registry.connection import RegistryConnection


def family(
    base: Annotated[
        str, typer.Argument(help="The 16-bit checkpoint that masks name: a Hub id or a folder.")
    ],
    members: Annotated[
        list[str], typer.Argument(metavar="QUANTIZED...", help="Checkpoints made from it.")
    ],
    out: Annotated[
        Path, typer.Option(help="File to write, for `bmt-server serve --family`.")
    ] = Path("family.json"),
    registry: Annotated[
        str,
        typer.Option(
            help="URL of a registry to keep the manifest in too: its servers need no --family. "
            "Members that it has of this base stay."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Compare quantized checkpoints with their BASE and write a manifest of the family.

    The names, shapes and dequantized weights of all gates are compared. Nothing is written if one
    does not fit.
    """
    # vLLM, whose registry of models is read for the Hub's files, takes seconds.
    from bmt_server.quantization.kinship import compare
    from bmt_server.vllm_integration.checkpoint import checkpoint_folder

    try:
        folders = {member: checkpoint_folder(member) for member in members}
        found = compare(base, checkpoint_folder(base), folders, say)
        found.write(out)
    except (SettingsError, bmt_core.BmtError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{out} cannot be written ({error.strerror}); choose another with --out")
    if registry:
        with_connection(registry, partial(keep, found))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(f"{out}: {len(found.members)} of base {found.base.fingerprint[:12]}…")


async def keep(family: Family, connection: RegistryConnection) -> None:
    """Keep a manifest in the registry, with the members that are known there. Raises ApiError."""
    # redis is imported by the commands that need it.
    from bmt_server.registry.families import put_family

    for known in await _families(connection):
        if known.base.fingerprint == family.base.fingerprint:
            family = family.joined(known)
    await put_family(connection, family.base.fingerprint, family.text())


def kept_family(url: str, fingerprint: str) -> Family | None:
    """The family of a checkpoint that the registry keeps; None if there is none.

    Raises FamilyError if the registry does not answer.
    """
    from bmt_server.registry.connection import RegistryConnection

    async def find() -> Family | None:
        connection = RegistryConnection(url)
        try:
            found = await _families(connection)
        finally:
            await connection.close()
        return next((family for family in found if family.includes(fingerprint)), None)

    try:
        return asyncio.run(find())
    except ApiError as error:
        raise FamilyError(
            "the checkpoint is quantized, and its family is looked up in the registry, which does "
            f"not answer ({error}); start it first, or give the manifest with --family FILE"
        ) from None


async def _families(connection: RegistryConnection) -> list[Family]:
    """All that can be read; a manifest of another version is another server's."""
    from bmt_server.registry.families import family_texts

    found = []
    for text in await family_texts(connection):
        try:
            found.append(Family.parse(text, "a manifest of the registry"))
        except FamilyError as error:
            say(f"warning: {error}")
    return found
