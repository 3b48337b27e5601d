"""The model card of a mask: `README.md` with front matter, made of the mask's file alone.

The same file gives the same card, so pushing it twice changes nothing. The metadata of a mask may
hold anything: entries that are not as the trainer writes them are left out or shown as text.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from bmt_core import Mask

from bmt_client._errors import UsageError
from bmt_client._files import hex_sha256

from .library import require
from .markdown import code, table, text
from .places import SCHEME, HubPlace, parse_place

LIBRARY = "bmt-adapters"
_HOMEPAGE = "https://github.com/bmt-adapters/bmt-adapters"
_METHOD = re.compile(r"[a-z][a-z0-9-]{0,31}")
_MARK = re.compile(r"\n<!-- card of bmt-client push, ([0-9a-f]{64}) -->\n\Z")
_ROWS = 80  # of a table at most
#: Meanings of the scores that the trainer writes, in their order.
_SCORES = {
    "base": "the base, without the mask",
    "init": "the mask before training",
    "last": "the mask after the last step, if validations chose another",
    "teacher": "the teacher",
    "guess": "the most frequent answer of training",
    "full": "all deletions",
    "lean": "the learned deletions",
    "mask": "**this mask**",
}
# Means that methods score by besides a share: the key of a score, and its name in the table.
_MEANS = {
    "grpo": ("mean", "mean reward"),
    "dpo": ("margin", "margin in nats"),
    "kto": ("gain", "gain in nats"),
}
_SHARES = {"dpo": "chosen answer likelier", "kto": "answers moved as labeled"}
_FACTS = ("method", "dataset", "train_examples", "steps", "seed", "init_sparsity", "loss")


def base_repository(mask: Mask, given: str | None = None) -> str | None:
    """The base's repository on the Hub: `given`, or the mask's id if it has the form org/name."""
    name = mask.base.model_id if given is None else given
    try:
        place = parse_place(f"{SCHEME}{name}")
    except UsageError:
        return None
    return name if place == HubPlace(name) else None


def make_card(mask: Mask, data: bytes, place: HubPlace, base_model: str | None = None) -> str:
    """The card of a mask. data: its file; place: where the file is; base_model: as `org/name`."""
    base = base_repository(mask, base_model)
    lines = [
        f"# {text(place.repository.rpartition('/')[2])}",
        "",
        f"A bit mask of {_link(base) if base else code(mask.base.model_id)}: a fine-tune that is "
        f"nothing but {mask.zeros:,} deleted weights, {100 * mask.sparsity:.3g} % of the masked "
        "layers. The file needs the base with the fingerprint below, and changes no other weight.",
        "",
        *_facts(mask, data, place),
        *_scores(mask.metadata),
        *_recipe(mask.metadata),
        *_use(place, base),
    ]
    body = f"---\n{_front_matter(mask, base)}\n---\n\n" + "\n".join(lines)
    return f"{body}\n<!-- card of bmt-client push, {_digest(body)} -->\n"


def is_untouched(card: str) -> bool:
    """True for a card that `make_card` wrote, and that was not edited since."""
    card = card.replace("\r\n", "\n")
    mark = _MARK.search(card)
    return mark is not None and mark.group(1) == _digest(card[: mark.start()])


def _digest(body: str) -> str:
    return hex_sha256(body.encode())


def _front_matter(mask: Mask, base: str | None) -> str:
    tags = ["bit-mask", "bmt"]
    method = mask.metadata.get("method")
    if isinstance(method, str) and _METHOD.fullmatch(method):
        tags.append(method)
    relation = {} if base is None else {"base_model": base, "base_model_relation": "adapter"}
    data = require().ModelCardData(
        library_name=LIBRARY, pipeline_tag="text-generation", tags=tags, **relation
    )
    return str(data.to_yaml()).strip()


def _link(repository: str) -> str:
    return f"[{text(repository)}](https://huggingface.co/{repository})"


def _facts(mask: Mask, data: bytes, place: HubPlace) -> list[str]:
    rows = [
        ("file", f"{code(place.file or '')}, {len(data):,} bytes"),
        ("deleted", f"{mask.zeros:,} of {mask.numel:,} weights; tensors: {len(mask.tensors)}"),
        ("base", code(mask.base.model_id)),
        ("fingerprint of the base", code(mask.base.fingerprint)),
        ("digest of the mask", code(mask.digest)),
        ("SHA-256 of the file", code(hex_sha256(data))),
    ]
    return table(("mask", ""), rows)


def _scores(metadata: Mapping[str, Any]) -> list[str]:
    given = metadata.get("scores")
    scores = given if isinstance(given, Mapping) else {}
    names = [
        *(name for name in _SCORES if name in scores),
        *(n for n in scores if n not in _SCORES),
    ]
    rows, method = [], str(metadata.get("method"))
    mean, title = _MEANS.get(method, (None, ""))
    for name in names[:_ROWS]:
        cells = _score(scores[name], mean)
        if cells is not None:
            rows.append((_SCORES.get(name) or code(name, 64), *cells))
    if not rows:
        return ["## Scores", "", "The file has no scores.", ""]
    first = (title, "95 % interval") if mean else ()
    share = _SHARES.get(method, "exact match")
    head = ("", *first, share, "95 % interval", "n")
    left_out = len(scores) - len(rows)
    note = [f"Left out: {left_out} of the file's entries, without a share and its interval.", ""]
    return [
        "## Scores",
        "",
        "On held-out examples, as the training run measured them; n is their number.",
        "",
        *table(head, rows),
        *(note if left_out else []),
    ]


def _score(value: Any, mean: str | None) -> tuple[str, ...] | None:
    """Cells of one score; None for what is no score. mean: the key of a mean, if it has one."""
    if not isinstance(value, Mapping):
        return None
    share, total = _number(value.get("accuracy"), 0, 1), _number(value.get("total"), 1)
    interval = _interval(value.get("interval95"), 0, 1)
    if share is None or total is None or interval is None:
        return None
    first: tuple[str, ...] = ()
    if mean is not None:
        middle, around = _number(value.get(mean)), _interval(value.get(f"{mean}_interval95"))
        first = (
            ("", "")
            if middle is None or around is None
            else (
                f"{middle:.4g}",
                f"{around[0]:.4g} to {around[1]:.4g}",
            )
        )
    low, high = interval
    return (*first, f"{share:.1%}", f"{low:.1%} to {high:.1%}", f"{total:,.0f}")


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and low <= value <= high else None


def _interval(
    value: Any, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    first, last = (_number(bound, low, high) for bound in value)
    return None if first is None or last is None or first > last else (first, last)


def _recipe(metadata: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, code(_json(metadata[name]))) for name in _FACTS if metadata.get(name) is not None
    ]
    rows += [(code(name, 64), code(value)) for name, value in _settings(metadata)][:_ROWS]
    versions = metadata.get("versions")
    if isinstance(versions, Mapping) and versions:
        rows.append(("versions", code(", ".join(f"{k} {v}" for k, v in versions.items()))))
    if not rows:
        return ["## Recipe", "", "The file does not say how it was made.", ""]
    warnings = metadata.get("warnings")
    noted = [f"- {text(line)}" for line in warnings[:10]] if isinstance(warnings, list) else []
    return [
        "## Recipe",
        "",
        *table(("setting", "value"), rows),
        *(["Warnings of the run:", "", *noted, ""] if noted else []),
    ]


def _settings(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings of the run that are given, without those among the facts."""
    config = metadata.get("config")
    for name, value in config.items() if isinstance(config, Mapping) else ():
        if value is not None and name not in _FACTS:
            yield name, _json(value)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _use(place: HubPlace, base: str | None) -> list[str]:
    file = shlex.quote(place.name)
    return [
        "## Use",
        "",
        f"With [{LIBRARY}]({_HOMEPAGE}); the base must be the one with the fingerprint above.",
        "",
        "```sh",
        f"pip install '{LIBRARY}[hub]'",
        "# to a running bmt-server, which serves it by its name",
        f"bmt-client upload {shlex.quote(str(place))}",
        "# or as a file, and from it a checkpoint or a PEFT adapter for other engines",
        f"bmt-client pull {shlex.quote(str(place))}",
        f"pip install '{LIBRARY}[trainer]'",
        f"bmt-train export {file} --model {base or 'FOLDER_OF_THE_BASE'} "
        "--to checkpoint --output masked",
        "```",
    ]
