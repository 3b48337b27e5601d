"""`bmt-server family`: write down which quantized checkpoints were made from a base."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import bmt_core
import typer

from bmt_server.cli.common import AsJson, fail, say
from bmt_server.settings import SettingsError


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
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(f"{out}: {len(found.members)} of base {found.base.fingerprint[:12]}…")
