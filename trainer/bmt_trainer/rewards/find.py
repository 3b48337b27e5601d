"""Rewards by text: built-in graders, users' functions and classes, a judge on a server."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation import graders
from bmt_trainer.rewards import loading, options
from bmt_trainer.rewards.combined import Rewards
from bmt_trainer.rewards.judge import Judge
from bmt_trainer.rewards.reward import Reward
from bmt_trainer.rewards.signatures import TRL_ARGUMENTS, Form, form_of
from bmt_trainer.rewards.specification import JOINED, JUDGE, Specification, parse

# DAPO's soft overlong punishment (Eq. 13), by the name that gives `bmt-train eval` the same.
_OVERLONG = (
    "trl.rewards.get_soft_overlong_punishment?max_completion_len={longest}&soft_punish_cache={last}"
)


def find_for(dataset: str, text: str | None) -> Rewards:
    """The rewards of `text`, or the default grader of the data set's form. Raises ConfigError."""
    if text is not None:
        return find(text)
    grader = graders.find_for(dataset, None)
    return Rewards(grader.name, (_of_grader(Specification(grader.name, grader.name), grader),))


def find(text: str, *, overlong: int = 0) -> Rewards:
    """The rewards that a text names, joined by ` + `. Raises ConfigError.

    Each is a grader, FILE.py:NAME, a dotted path, or judge:URL, with ?key=value&… for its
    parameters and its `weight`. overlong: last tokens of a completion in which a penalty grows
    from 0 to -1; 0 for none.
    """
    specifications = parse(text)
    if not any(specification.weight for specification in specifications):
        raise ConfigError(
            f"reward: {text} has weight 0, so all answers are worth 0 and there is nothing to "
            "learn or to measure; leave the weight out, or name a reward that counts"
        )
    found = tuple(map(_one, specifications))
    penalty = partial(_overlong, overlong) if overlong else None
    return Rewards(JOINED.join(reward.text for reward in found), found, overlong=penalty)


def _overlong(last: int, longest: int) -> Reward:
    [specification] = parse(_OVERLONG.format(longest=longest, last=last))
    return _one(specification)


def _of_grader(spec: Specification, grader: graders.Grader) -> Reward:
    form = Form(single=True)
    return Reward(
        *(spec.text, spec.name, grader.strict, form, spec.weight, grader.lenient), of_answers=True
    )


def _one(spec: Specification) -> Reward:
    if spec.name in graders.GRADERS:
        if spec.options:
            raise ConfigError(
                f"reward {spec.text}: {spec.name} has no option {next(iter(spec.options))!r}; "
                "options: weight"
            )
        return _of_grader(spec, graders.find(spec.name))
    judge = spec.name.startswith(JUDGE)
    if judge:
        function, label, folder = _judge(spec), "judge", None
    elif loading.split_file(spec.name) is None and loading.split_dotted(spec.name) is None:
        raise ConfigError(
            f"reward: {spec.text!r} is not one of {', '.join(graders.GRADERS)}, nor "
            "FILE.py:FUNCTION, a dotted path or judge:URL?model=NAME"
        )
    else:
        found, folder = loading.load(spec.name)
        label = spec.name.replace(":", ".").rpartition(".")[2]
        function = _made(found, spec, folder)
    made = form_of(function, spec.text)
    if made is None:
        raise ConfigError(f"reward {spec.text}: {function!r} takes no completions")
    return Reward(spec.text, label, function, made, spec.weight, folder=folder, of_answers=judge)


def _judge(spec: Specification) -> Callable[..., Any]:
    url = spec.name.removeprefix(JUDGE)
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"reward {spec.text}: {url!r} is not an http(s) URL")
    given = options.arguments(Judge, spec.options, spec.text, taken=("url",))
    if "model" not in given:
        raise ConfigError(f"reward {spec.text}: name the judge's model by ?model=NAME")
    try:
        return Judge(url, **given)
    except ConfigError:
        raise
    except Exception as error:  # an address or a key that the client refuses
        raise ConfigError(f"reward {spec.text}: {error}") from error


def _made(found: Any, spec: Specification, folder: Path) -> Callable[..., Any]:
    """The function of a loaded object: a class is constructed, options are bound."""
    if inspect.isclass(found):
        made = _called(found, spec, folder)
        if not callable(made):
            raise ConfigError(
                f"reward {spec.text}: objects of {found.__name__} have no __call__; a class of "
                "rewards is called like a function, once per batch"
            )
        return made
    if not callable(found):
        raise ConfigError(f"reward {spec.text}: {type(found).__name__} is not a function")
    form = form_of(found, spec.text, bound=spec.options)
    if form is None:  # it makes the reward, as trl.rewards.get_soft_overlong_punishment does
        made = _called(found, spec, folder)
        if not callable(made):
            raise ConfigError(
                f"reward {spec.text}: it takes no completions, and returns "
                f"{type(made).__name__}, not a function"
            )
        return made
    bound = options.arguments(found, spec.options, spec.text, taken=TRL_ARGUMENTS)
    return partial(found, **bound) if bound else found  # type: ignore[no-any-return]


def _called(maker: Callable[..., Any], spec: Specification, folder: Path) -> Any:
    given = options.arguments(maker, spec.options, spec.text)
    try:
        with loading.neighbors_of(folder):
            return maker(**given)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a user's code raises, SystemExit too
        parameters = inspect.signature(maker)
        raise ConfigError(
            f"reward {spec.text}: it cannot be made with {parameters} "
            f"({loading.described(error)}); give its parameters as ?key=value"
        ) from error
