"""Part of the list of models that a request asks for: kinds, a prefix, a page.

The list is sorted: base models first, then by mask, each mask's name, its version, its aliases. An
id's place in it (`Place`) does not depend on the id being there, so a page may begin after an id
that was removed meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import bmt_core

from bmt_server.errors import BadRequest

#: Kinds of ids: the base model, a mask's name, one of its aliases, the latest version by digest.
KINDS = ("base", "name", "alias", "version")
#: Without `kind`. A version has the same answers as its name until the name moves, so a list of
#: models to choose from needs one of them.
DEFAULT_KINDS = frozenset(("base", "name", "alias"))
MAX_PAGE = 1000
#: Base or mask, the mask's name, base's number or kind of id, alias.
Place = tuple[int, str, int, str]


@dataclass(frozen=True, slots=True)
class ModelQuery:
    """Ids of these kinds that begin with `prefix` and lie between two places.

    limit: most ids; None: all. With `before` alone they are the last ones before it.
    """

    kinds: frozenset[str] = DEFAULT_KINDS
    prefix: str = ""
    after: Place | None = None
    before: Place | None = None
    limit: int | None = None

    def takes(self, kind: str, model: str, place: Place) -> bool:
        """True if the id `model` is among the ones that are asked for."""
        return (
            kind in self.kinds
            and model.startswith(self.prefix)
            and (self.after is None or place > self.after)
            and (self.before is None or place < self.before)
        )

    @property
    def name_prefix(self) -> str:
        """Beginning of the names of all masks that may have such ids."""
        return self.prefix.replace("@", ":").partition(":")[0]


def base_place(number: int) -> Place:
    """Place of the base model's name of this number."""
    return (0, "", number, "")


def mask_place(name: str, alias: str | None = None, *, version: bool = False) -> Place:
    """Place of a mask's name, of its version, or of an alias."""
    return (1, name, 1 if version else 2 if alias else 0, alias or "")


def parse_query(
    base_names: Sequence[str],
    kinds: Sequence[str],
    prefix: str,
    limit: int | None,
    after: str | None,
    before: str | None,
) -> ModelQuery:
    """The query of a request's parameters. kinds: each may be several, with commas.

    Raises BadRequest.
    """
    wanted = frozenset(word.strip() for text in kinds for word in text.split(",") if word.strip())
    if unknown := sorted(wanted.difference(KINDS)):
        raise BadRequest(
            f"kind {unknown[0][:80]!r} is none of {', '.join(KINDS)}",
            code="kind_unknown",
            param="kind",
        )
    if after and before:
        raise BadRequest("give one of after and before_id", param="before_id")
    return ModelQuery(
        kinds=wanted or DEFAULT_KINDS,
        prefix=prefix,
        after=_place(base_names, after, "after") if after else None,
        before=_place(base_names, before, "before_id") if before else None,
        limit=MAX_PAGE if before and limit is None else limit,
    )


def _place(base_names: Sequence[str], model: str, param: str) -> Place:
    if model in base_names:
        return base_place(base_names.index(model))
    try:
        ref = bmt_core.MaskRef.parse(model)
    except bmt_core.InvalidName:
        raise BadRequest(
            f"{param} {model[:80]!r} is no id of the list of models",
            code="cursor_invalid",
            param=param,
        ) from None
    return mask_place(ref.name, ref.alias, version=ref.digest_prefix is not None)
