"""Environments and tools of rollouts of several turns, as TRL's GRPO trainer takes them.

TRL 1.16, trainer/grpo_trainer.py, `environment_factory`: an object with `reset` and public methods
that a model calls; TRL makes one per completion, resets it with a row's columns, and runs calls
until an answer has none.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers.utils import get_json_schema

from bmt_trainer.data.examples import Example
from bmt_trainer.errors import ConfigError, DataError, RolloutError
from bmt_trainer.rewards.loading import load

#: Methods of an environment that no model calls.
_OWN = ("reset", "get_reward")


@dataclass(frozen=True)
class Environments:
    """The functions that a model may call in rollouts: an environment's methods, and functions.

    factory: makes an environment; name: its text in settings; tools: functions of no environment.
    """

    name: str = ""
    factory: Callable[[], Any] | None = None
    tools: tuple[Callable[..., Any], ...] = ()
    schemas: tuple[Mapping[str, Any], ...] = ()
    rewards_itself: bool = False

    def __bool__(self) -> bool:
        return bool(self.factory or self.tools)

    def for_rows(
        self, row_of: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> Callable[[], Any] | None:
        """TRL's `environment_factory`.

        row_of: the columns that `reset` gets of a row of the trainer.
        """
        if self.factory is None:
            return None
        factory, name = self.factory, self.name

        def made() -> Any:
            return _guarded(_new(factory, name), name, row_of)

        return made

    def shown_to(self, example: Example) -> Example:
        """`example` with the functions that its prompt describes. Raises DataError."""
        if not self:
            return example
        where = example.location or "a row"
        if isinstance(example.prompt, str):
            raise DataError(
                f"{where}: prompt: raw text has no turns, which calls need; give a chat"
            )
        if example.tools:
            raise DataError(
                f"{where}: tools: the run's own are described in each "
                f"prompt ({', '.join(names_of(self.schemas))}); remove the row's, or the setting"
            )
        return replace(example, tools=self.schemas)


def named(environment: str | None, tools: str | None) -> Environments:
    """The environment and the functions of the settings' texts. Raises ConfigError.

    tools: names behind one file or module, separated by commas.
    """
    functions = [(text, _loaded("tools", text)) for text in tool_texts(tools)]
    made = None if environment is None else (environment, _loaded("environment", environment))
    return prepare(made, functions)


def tool_texts(tools: str | None) -> list[str]:
    """The setting's functions, each with its file or module."""
    if tools is None:
        return []
    place, colon, names = tools.rpartition(":")
    return [f"{place}{colon}{name.strip()}" for name in names.split(",")]


def _loaded(setting: str, text: str) -> Any:
    try:
        return load(text)[0]
    except ConfigError as error:
        raise ConfigError(str(error).replace("reward", setting, 1)) from error


def prepare(environment: tuple[str, Any] | None, tools: Sequence[tuple[str, Any]]) -> Environments:
    """Check what the settings name: (name, object) of each. Raises ConfigError.

    The environment is made once, which must not fail; each method and function needs a docstring
    and annotated parameters, which its description in prompts is made of.
    """
    found: list[tuple[str, Callable[..., Any]]] = []
    name, factory, rewards = "", None, False
    if environment is not None:
        name, factory = environment
        if not callable(factory):
            raise ConfigError(f"environment {name}: not a class or a function that makes one")
        instance = _new(factory, name)
        members = dict(inspect.getmembers(type(instance), predicate=inspect.isfunction))
        if "reset" not in members:
            raise ConfigError(f"environment {name}: {_kind(instance)} has no method reset(**row)")
        rewards = "get_reward" in members
        methods = [m for m in members if m not in _OWN and not m.startswith("_")]
        if not methods:
            raise ConfigError(
                f"environment {name}: {_kind(instance)} has no public method that a model can call"
            )
        found += [(f"environment {name}: {m}", getattr(instance, m)) for m in methods]
    for tool_name, tool in tools:
        if not inspect.isfunction(tool) and not inspect.ismethod(tool):
            raise ConfigError(f"tools {tool_name}: not a function")
        found.append((f"tools {tool_name}", tool))
    schemas = tuple(_schema(place, function) for place, function in found)
    names = names_of(schemas)
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ConfigError(f"tools: {', '.join(twice)} is defined twice; rename one")
    return Environments(name, factory, tuple(tool for _, tool in tools), schemas, rewards)


def try_reset(environments: Environments, row: Mapping[str, Any]) -> Any:
    """An environment reset with a row, before anything is generated. Raises ConfigError."""
    factory = environments.for_rows(dict)
    if factory is None:
        return None
    made = factory()
    try:
        made.reset(**row)
    except RolloutError as error:
        raise ConfigError(str(error)) from error
    return made


def names_of(schemas: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the functions that are described."""
    return [schema["function"]["name"] for schema in schemas]


def _new(factory: Callable[[], Any], name: str) -> Any:
    try:
        return factory()
    except Exception as error:  # whatever a user's class raises
        raise ConfigError(f"environment {name}: cannot be made ({_shown(error)})") from error


def _schema(place: str, function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return dict(get_json_schema(function))
    except Exception as error:  # several of transformers, and of `inspect`
        raise ConfigError(
            f"{place}: cannot be described in a prompt ({_shown(error)}); give it a docstring with "
            "an Args section and types of its parameters"
        ) from error


def _guarded(
    instance: Any, name: str, row_of: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Any:
    """`instance`, whose `reset` and `get_reward` raise RolloutError instead of any error.

    Methods that a model calls stay as they are: TRL answers their errors to the model.
    """
    reset = instance.reset

    @functools.wraps(reset)
    def reset_with_columns(**row: Any) -> Any:
        try:
            observation = reset(**row_of(row))
        except Exception as error:  # whatever a user's class raises
            raise RolloutError(f"environment {name}: reset failed ({_shown(error)})") from error
        if observation is not None and not isinstance(observation, str | list):
            raise RolloutError(
                f"environment {name}: reset returned {type(observation).__name__}, expected text "
                "that is added to the prompt, or None"
            )
        return observation

    try:
        instance.reset = reset_with_columns
    except AttributeError as error:
        raise ConfigError(
            f"environment {name}: takes no attributes ({error}); no __slots__"
        ) from None
    if callable(reward := getattr(instance, "get_reward", None)):
        instance.get_reward = _guarded_reward(reward, name)
    return instance


def _guarded_reward(reward: Callable[[], Any], name: str) -> Callable[[], Any]:
    def checked(value: Any) -> Any:
        number = isinstance(value, int | float) and abs(value) < float("inf")
        if value is not None and not number:
            raise RolloutError(
                f"environment {name}: get_reward returned {value!r}, expected a finite number"
            )
        return value

    def failed(error: Exception) -> RolloutError:
        return RolloutError(f"environment {name}: get_reward failed ({_shown(error)})")

    if inspect.iscoroutinefunction(reward):

        @functools.wraps(reward)
        async def awaited() -> Any:
            try:
                value = await reward()
            except Exception as error:  # whatever a user's class raises
                raise failed(error) from error
            return checked(value)

        return awaited

    @functools.wraps(reward)
    def called() -> Any:
        try:
            value = reward()
        except Exception as error:  # whatever a user's class raises
            raise failed(error) from error
        return checked(value)

    return called


def _kind(instance: Any) -> str:
    return type(instance).__name__


def _shown(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
