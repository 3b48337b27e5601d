"""Requirements of environments and tools, and refusals before a run."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from bmt_client import KeyInfo
from bmt_trainer.data.examples import Example, chat
from bmt_trainer.errors import ConfigError, DataError, RolloutError
from bmt_trainer.methods.rollouts.environments import names_of, prepare, try_reset
from bmt_trainer.methods.rollouts.outage import Outage
from bmt_trainer.methods.rollouts.server import ServerRollouts
from bmt_trainer.methods.rollouts.steps import StepRollouts
from bmt_trainer.methods.trl_setup import prepare_tool_calls
from bmt_trainer.templates import shipped

from tests.support.tiny_model import byte_tokenizer


class Counter:
    """An environment."""

    def reset(self, start: int = 0, **row):
        self.total = start

    def add(self, n: int) -> str:
        """
        Add to the total.

        Args:
            n: the summand.
        """
        self.total += n
        return str(self.total)

    def _hidden(self):
        pass


def now() -> str:
    """Say the time."""
    return "12:00"


def untyped(n):
    """Count."""


class Rewarded(Counter):
    def get_reward(self):
        return self.total


class Bare:
    def add(self, n: int) -> str:
        """
        Add.

        Args:
            n: n.
        """


class NoMethods:
    def reset(self, **row):
        pass


class Unmade(Counter):
    def __init__(self):
        raise OSError("no socket")


class Slots(Counter):
    __slots__ = ("total",)

    def __init_subclass__(cls):
        pass


def test_methods_and_functions_are_described_in_prompts():
    environments = prepare(("Counter", Counter), [("now", now)])
    assert names_of(environments.schemas) == ["add", "now"]
    parameters = environments.schemas[0]["function"]["parameters"]
    assert parameters["properties"]["n"]["type"] == "integer"
    example = Example(chat("q"), "a", location="r.jsonl:1")
    assert environments.shown_to(example).tools == environments.schemas
    assert not environments.rewards_itself
    assert prepare(("Rewarded", Rewarded), []).rewards_itself
    nothing = prepare(None, [])
    assert not nothing
    assert nothing.shown_to(example) is example
    own = Example(chat("q"), "a", tools=environments.schemas, location="r.jsonl:7")
    with pytest.raises(DataError, match=r"r\.jsonl:7: tools: .*add, now"):
        environments.shown_to(own)
    with pytest.raises(DataError, match=r"r\.jsonl:8: prompt: raw text"):
        environments.shown_to(Example("def f():", "", location="r.jsonl:8"))


@pytest.mark.parametrize(
    ("environment", "tools", "message"),
    [
        (3, [], "environment x: not a class"),
        (Bare, [], "environment x: Bare has no method reset"),
        (NoMethods, [], "environment x: NoMethods has no public method"),
        (Unmade, [], "environment x: cannot be made .*no socket"),
        (None, [untyped], "tools t: cannot be described in a prompt"),
        (None, [3], "tools t: not a function"),
        (Counter, [Counter().add], "tools: add is defined twice"),
    ],
)
def test_what_a_model_could_not_use_is_refused(environment, tools, message):
    with pytest.raises(ConfigError, match=message):
        prepare(environment and ("x", environment), [("t", tool) for tool in tools])


def test_an_environment_gets_the_columns_of_its_row():
    rows = [{"start": 5, "other": None}]
    made = prepare(("Counter", Counter), []).for_rows(lambda row: rows[row["row"]])()
    assert made.reset(prompt="q", row=0) is None
    assert made.add(n=2) == "7"
    assert prepare(None, [("now", now)]).for_rows(dict) is None


@pytest.mark.parametrize("returned", [3, {}, b"x"])
def test_errors_of_an_environment_name_it(returned):
    class Broken(Counter):
        def reset(self, **row):
            if returned == 3:
                raise KeyError("start")
            return returned

        def get_reward(self):
            return float("nan")

    class Awaited(Counter):
        async def get_reward(self):
            raise ValueError("judge is away")

    environments = prepare(("e.py:Broken", Broken), [])
    made = environments.for_rows(dict)()
    with pytest.raises(RolloutError, match=r"environment e\.py:Broken: reset (failed|returned)"):
        made.reset(start=1)
    with pytest.raises(ConfigError, match=r"environment e\.py:Broken: reset"):
        try_reset(environments, {"start": 1})
    with pytest.raises(RolloutError, match="get_reward returned nan, expected a finite number"):
        made.get_reward()
    awaited = prepare(("a", Awaited), []).for_rows(dict)()
    with pytest.raises(RolloutError, match=r"get_reward failed .*judge is away"):
        asyncio.run(awaited.get_reward())


def test_templates_that_cannot_hold_calls_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"leaves out calls.*--chat-template tools"):
        prepare_tool_calls(byte_tokenizer())
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(ConfigError, match=r"no chat template.*--chat-template tools"):
        prepare_tool_calls(bare)
    unknown = byte_tokenizer()
    unknown.chat_template = shipped.text_of("tools") + "{# changed #}"
    with pytest.raises(ConfigError, match=r"TRL cannot parse.*--chat-template tools"):
        prepare_tool_calls(unknown)
    ours = byte_tokenizer()
    ours.chat_template = shipped.text_of("tools")
    prepare_tool_calls(ours)
    text = '<tool_call>\n{"name": "add", "arguments": {"n": 2}}\n</tool_call><|im_end|>'
    [call] = ours.parse_response(text, prefix="")["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": {"n": 2}}


def test_turns_on_a_server_use_one_mask_and_seeds_of_their_own():
    requests = []

    def answer(fields):
        requests.append(fields)
        choices = [
            {
                "index": i,
                "token_ids": [i],
                "logprobs": {"token_logprobs": [-0.5]},
                "finish_reason": "stop",
            }
            for i in range(fields["n"])
        ]
        return {"model": fields["model"], "choices": choices}

    server = SimpleNamespace(
        registry=None,
        limits=KeyInfo(scopes=frozenset()),
        outage=lambda: Outage("", 0.0, print),
        generation=lambda: SimpleNamespace(run=lambda asked: [answer(one) for one in asked]),
    )
    sampling = ServerRollouts(server, "m", max_tokens=3, temperature=1.0)
    sampling.push = sampling.follow
    masks = iter([SimpleNamespace(digest="1"), SimpleNamespace(digest="2")])
    rollouts = StepRollouts([sampling], lambda: next(masks))
    trainer = SimpleNamespace(
        state=SimpleNamespace(global_step=0), _log_metric=lambda name, value: None
    )
    for step in range(2):
        trainer.state.global_step = step
        ids, logprobs = rollouts.turn([[1], [1], [2], [2]], trainer, first=True)
        assert ids == [[0], [1], [0], [1]]
        assert logprobs == [[-0.5]] * 4
        # Only some go on, each with its own history.
        assert rollouts.turn([[1, 7], [2, 8], [2, 8]], trainer, first=False)[0] == [[0], [0], [1]]
    by_model = {m: sorted(r["n"] for r in requests if r["model"] == m) for m in ("m@1", "m@2")}
    assert by_model == {"m@1": [1, 2, 2, 2], "m@2": [1, 2, 2, 2]}
    assert len({r["seed"] for r in requests}) == len(requests)
    assert all(r["seed"] < 1 << 63 for r in requests)
