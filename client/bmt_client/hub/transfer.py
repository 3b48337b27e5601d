"""Push and pull: a mask's file to a model repository of the Hub, and from one.

Both are of one commit: a pull takes the file of the commit that it has listed, and a push fails if
another commit came after the one that it has read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import bmt_core
from bmt_core import Mask

from bmt_client._errors import Invalid, NotFound, ProtocolError, TooLarge, UsageError
from bmt_client._files import decode, hex_sha256, read_file

from .card import base_repository, is_untouched, make_card
from .failures import typed_errors
from .library import endpoint, open_api, quiet, require, require_push
from .places import HubPlace, parse_place

_CARD = "README.md"
_MAX_CARD_BYTES = 1 << 20
_NAMED = 5  # files that a message names

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A mask's file from the Hub. place: with its commit and path; data: its bytes."""

    place: HubPlace
    data: bytes
    mask: Mask


@dataclass(frozen=True, slots=True)
class Pushed:
    """A push. outcome: `created` for a new commit, `unchanged` if the Hub had all of it.

    card: `written`, or `kept` for one of somebody's own. private: of the repository.
    """

    place: str
    url: str
    commit: str
    digest: str
    outcome: str
    card: str
    private: bool

    def as_dict(self) -> dict[str, Any]:
        """A JSON-serializable dict, as `bmt-client --json` prints it."""
        return asdict(self)


def pull(place: str | HubPlace) -> Fetched:
    """Fetch a mask, by the file of a place or the only .bmt file of its repository.

    The file is checked against the Hub's SHA-256, if it has one, and decoded. With HF_HUB_OFFLINE
    it comes from the Hub's cache, and its place must name it. Raises BmtClientError.
    """
    place = parse_place(place) if isinstance(place, str) else place
    api = open_api(to_write=False, place=place)
    with quiet(), typed_errors(place, has_token=bool(api.token)):
        if require().constants.HF_HUB_OFFLINE and place.file is not None:
            path = api.hf_hub_download(place.repository, place.file, revision=place.revision)
            return _fetched(place, Path(path), None)
        info = api.model_info(place.repository, revision=place.revision, files_metadata=True)
        files = {str(entry.rfilename): entry for entry in info.siblings or ()}
        place = place.at(file=_chosen(place, list(files)), revision=info.sha or place.revision)
        entry = files[str(place.file)]
        if entry.size is not None:
            _check_size(place, entry.size)
        path = api.hf_hub_download(place.repository, place.file, revision=place.revision)
    return _fetched(place, Path(path), getattr(entry.lfs, "sha256", None))


def push(
    source: str | PathLike[str],
    place: str | HubPlace,
    *,
    private: bool | None = None,
    message: str | None = None,
    base_model: str | None = None,
    replace_card: bool = False,
    say: Say = lambda line: None,
) -> Pushed:
    """Push a mask's file with a model card, in one commit; make the repository if there is none.

    place: its revision is a branch, made if it is missing; its file is the path in the repository,
    by default the name of `source`. private: of a new repository; None is the account's default.
    base_model: the base on the card, as `org/name`; default: the mask's own. A card that was not
    written here, or was edited, is kept unless `replace_card`. say: gets lines for people. Raises
    BmtClientError.
    """
    place = parse_place(place) if isinstance(place, str) else place
    path = Path(source)
    if place.file is None:
        # Checked as one that is written in an address.
        place = parse_place(f"{place}/{path.name}")
    require_push(place)
    data = read_file(path)
    mask = decode(data)
    if base_model is not None and base_repository(mask, base_model) is None:
        raise UsageError(f"base model {base_model[:200]!r} is no repository of the form org/name")
    if base_repository(mask, base_model) is None:
        say(
            f"the card names no repository of the base: the mask has only {mask.base.model_id!r}; "
            "give it as a base model of the form org/name"
        )
    with quiet(), typed_errors(place, has_token=True):
        return _commit(mask, data, place, private, message, base_model, replace_card, say)


def _commit(
    mask: Mask,
    data: bytes,
    place: HubPlace,
    private: bool | None,
    message: str | None,
    base_model: str | None,
    replace_card: bool,
    say: Say,
) -> Pushed:
    library, api = require(), open_api(to_write=True, place=place)
    info = _repository(api, place, private, say)
    files = [str(entry.rfilename) for entry in info.siblings or ()]
    others = [f for f in files if f.endswith(".bmt") and f != place.file]
    card = make_card(mask, data, place, base_model)
    written = _CARD not in files or replace_card or is_untouched(_read_card(api, place, info.sha))
    if not written:
        say(f"{_CARD} of {place.repository} is kept: it was not written by a push, or was edited")
    operations = [library.CommitOperationAdd(str(place.file), data)]
    if written:
        operations.append(library.CommitOperationAdd(_CARD, card.encode()))
    made = api.create_commit(
        place.repository,
        operations,
        commit_message=message or f"Mask {mask.digest[:12]}",
        revision=place.revision,
        parent_commit=info.sha,
    )
    if others:
        say(f"{place.repository} has {len(others) + 1} masks now; name one in its place: {place}")
    return Pushed(
        place=str(place),
        url=f"{endpoint()}/{place.repository}",
        commit=made.oid,
        digest=mask.digest,
        outcome="unchanged" if made.oid == info.sha else "created",
        card="written" if written else "kept",
        private=bool(info.private),
    )


def _repository(api: Any, place: HubPlace, private: bool | None, say: Say) -> Any:
    """The repository at the branch of a push; both are made if they are missing."""
    from huggingface_hub import errors

    try:
        return api.model_info(place.repository, revision=place.revision)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        api.create_repo(place.repository, private=private, exist_ok=True)
        made = api.model_info(place.repository)
        say(f"{place.repository} is made, {'private' if made.private else 'public'}")
        if place.revision is None or place.revision == "main":
            return made
    except errors.RevisionNotFoundError:
        pass
    if place.revision is not None and place.revision.startswith("refs/"):
        raise NotFound(
            f"{place.repository} has no {place.revision}; open the pull request first",
            code="hub_revision_unknown",
        )
    api.create_branch(place.repository, branch=place.revision, exist_ok=True)
    say(f"branch {place.revision} of {place.repository} is made")
    return api.model_info(place.repository, revision=place.revision)


def _read_card(api: Any, place: HubPlace, commit: str) -> str:
    path = Path(api.hf_hub_download(place.repository, _CARD, revision=commit))
    if path.stat().st_size > _MAX_CARD_BYTES:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _chosen(place: HubPlace, files: list[str]) -> str:
    """The file that a place means. Raises NotFound, UsageError."""
    if place.file is not None:
        if place.file not in files:
            raise NotFound(f"there is no {place}", code="hub_file_unknown")
        return place.file
    masks = sorted(f for f in files if f.endswith(".bmt"))
    if not masks:
        raise NotFound(f"{place} has no .bmt file", code="hub_no_mask")
    if len(masks) > 1:
        some = ", ".join(str(place.at(file=f)) for f in masks[:_NAMED])
        more = f" and {len(masks) - _NAMED} more" if len(masks) > _NAMED else ""
        raise UsageError(
            f"{place} has {len(masks)} .bmt files; name one: {some}{more}",
            code="hub_several_masks",
        )
    return masks[0]


def _check_size(place: HubPlace, size: int) -> None:
    try:
        bmt_core.Limits().check_file(size)
    except bmt_core.TooLarge as error:
        raise TooLarge(f"{place}: {error}", code="hub_too_large") from None


def _fetched(place: HubPlace, path: Path, sha256: str | None) -> Fetched:
    _check_size(place, path.stat().st_size)
    data = read_file(path)
    if sha256 is not None and hex_sha256(data) != sha256:
        raise ProtocolError(
            f"{place}: the file in the Hub's cache is not the one that the Hub lists; remove "
            f"{path} and try again",
            code="hub_damaged",
        )
    try:
        return Fetched(place, data, decode(data))
    except (Invalid, TooLarge) as error:
        raise type(error)(
            f"{place} is no mask: {error.message}", code=error.code, param=error.param
        ) from error
