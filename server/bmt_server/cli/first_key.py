"""First contact of `bmt-server serve` with its registry: suitability, and the first API key.

A registry that does not answer yet is no error: the server loads its model meanwhile and is not
ready before the registry is there.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from threading import Thread

from bmt_server.cli.common import say
from bmt_server.errors import ApiError, BadRequest, RegistryDown
from bmt_server.ipc.object_store import ObjectStore, parse_place
from bmt_server.ipc.registry_address import RegistryAddress
from bmt_server.registry.api_keys import SCOPES, ApiKeyStore
from bmt_server.registry.blobs.moving import left_in_redis
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.registry import Registry
from bmt_server.settings import SettingsError

_RETRY_S = 0.5


def check_url(url: str) -> None:
    """Raise SettingsError for text that is no registry's URL."""
    try:
        RegistryAddress.parse(url)
    except ValueError as error:
        raise SettingsError(f"--registry: {error}") from None


def check_place(url: str) -> None:
    """Raise SettingsError for text that is no place of blobs."""
    try:
        parse_place(url)
    except ValueError as error:
        raise SettingsError(f"--blobs: {error}") from None


def contact_registry(url: str, key_file: Path | None, *, no_auth: bool, blobs: str = "") -> None:
    """Check the registry, and write or print its first administrator key if it has none yet.

    While the registry does not answer, a background thread goes on trying. Raises SettingsError if
    it refuses the server's user, may drop masks, has their bytes elsewhere than in `blobs`, or if
    BMT_ADMIN_KEY is not a key.
    """
    # Removed from the environment, because the engine's processes have no use for it.
    given = os.environ.pop("BMT_ADMIN_KEY", "").strip()
    try:
        _announce(asyncio.run(_contact(url, given, no_auth, blobs)), key_file, url)
    except BadRequest as error:
        raise SettingsError(f"BMT_ADMIN_KEY: {error}") from None
    except RegistryDown as error:
        why = f" ({error.detail})" if error.detail else ""
        if error.code == "registry_refused":
            raise SettingsError(f"--registry: {error}{why}") from None
        say(
            f"the registry at {RegistryAddress.parse(url)} does not answer{why}; the server starts "
            "and is not ready until it does"
        )
        Thread(
            target=_keep_trying,
            args=(url, given, no_auth, key_file, blobs),
            name="bmt-key",
            daemon=True,
        ).start()
    except ApiError as error:
        raise SettingsError(f"--registry: {error}") from None


def _keep_trying(url: str, given: str, no_auth: bool, key_file: Path | None, blobs: str) -> None:
    said = ""
    while True:
        time.sleep(_RETRY_S)
        try:
            _announce(asyncio.run(_contact(url, given, no_auth, blobs)), key_file, url)
            return
        except RegistryDown:
            continue
        except (ApiError, OSError) as error:
            if str(error) != said:
                said = str(error)
                say(f"no first key: {said}")


async def _contact(url: str, given: str, no_auth: bool, blobs: str) -> str | None:
    """Secret of a new first key; "" if the registry has keys; None if none is to be made.

    given: an admin key that is stored instead.
    """
    connection = RegistryConnection(url, connections=1)
    keys = ApiKeyStore(connection)
    try:
        # The object store itself is not asked here: its client must not run before processes fork.
        store = ObjectStore(blobs) if blobs else None
        registry = Registry(connection, store=store)
        await registry.check_server()
        if blobs and (line := await left_in_redis(connection)):
            say(line)
        if no_auth:
            return None
        if given:
            if await keys.import_environment_key(given) == "revoked":
                say("BMT_ADMIN_KEY was revoked, and stays so; take it out, or generate another one")
            return None
        made = await keys.create(SCOPES, label="first", only_if_first=True)
    finally:
        await connection.close()
    return made[0] if made else ""


def _announce(key: str | None, key_file: Path | None, url: str) -> None:
    if key is None:
        return
    if not key:
        # A server that starts again has the file of its first start.
        if key_file is not None and not key_file.exists():
            say(
                f"--key-file {key_file} is not written: the registry has keys, and stores hashes "
                "alone; take the file of the first start, or make a key: bmt-server keys create "
                "--scope admin --scope infer --scope upload --registry "
                f"{RegistryAddress.parse(url)}"
            )
        return
    if key_file is not None:
        try:
            _write(key_file, key)
        except OSError as error:
            say(f"--key-file {key_file}: {error.strerror}; the key follows here")
        else:
            # Output ends in logs, which more people read than the file.
            say(f"API key (admin): in {key_file}. Set it as BMT_API_KEY for bmt-client")
            return
    # The registry stores only the key's hash, so it cannot be printed again.
    print(f"API key (admin): {key}", flush=True)
    print("It is shown only once. Set it as BMT_API_KEY for bmt-client.", flush=True)


def _write(file: Path, key: str) -> None:
    """Write the key for the owner alone, also over a file that others may read.

    Readers see all of it or none. Raises OSError.
    """
    if file.exists() and not file.is_file():  # a pipe, or /dev/stderr
        file.write_text(key + "\n")
        return
    target = file.resolve()
    handle, new = tempfile.mkstemp(prefix=".key-", dir=target.parent)
    try:
        with os.fdopen(handle, "w") as opened:
            opened.write(key + "\n")
        os.replace(new, target)
    except BaseException:
        os.unlink(new)
        raise
