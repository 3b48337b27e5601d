"""`score_model`: a model of the worker's own server states a number for each answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import openai
from bmt_client import BmtClient, BmtClientError
from bmt_core import GraderError
from bmt_core.fine_tuning.graders import ScoreModel

from bmt_trainer.errors import ConfigError, RolloutError
from bmt_trainer.evaluation.generate import NEUTRAL_SAMPLING
from bmt_trainer.evaluation.thoughts import completion_of
from bmt_trainer.waiting import result_of, threads

# Requests at a time, seconds of one, retries of it: a step asks for each of its answers.
_AT_ONCE, _TIMEOUT_S, _RETRIES = 8, 60.0, 3
_MAX_TOKENS = 64
# A number alone, or as the value of OpenAI's `result` in JSON, or last on a line of its own.
_NUMBER = r"([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?)"
_MARKS = r"[\s*_`\"']*"  # and no sign of a number
_FORMS = (
    re.compile(rf"{_MARKS}{_NUMBER}{_MARKS}\.?"),
    re.compile(rf'.*"(?:result|score)"\s*:\s*{_NUMBER}\s*[,}}].*', re.DOTALL),
    re.compile(
        rf"(?:.*\n)?{_MARKS}(?:result|score){_MARKS}[:=]{_MARKS}{_NUMBER}{_MARKS}\.?",
        re.DOTALL | re.IGNORECASE,
    ),
)


class ModelScores:
    """Scores by models of a server. url: its address; the key is the environment's BMT_API_KEY."""

    def __init__(self, url: str | None) -> None:
        self._url = url

    def scores(self, grader: ScoreModel, asked: Sequence[Sequence[tuple[str, str]]]) -> list[float]:
        """A number for each chat, cut to the grader's range. Raises GraderError, ConfigError, and
        RolloutError where the server is away."""
        if not self._url:
            raise ConfigError("grader: score_model needs the worker's server, and none is set")
        try:
            with (
                BmtClient(self._url, max_retries=_RETRIES) as client,
                client.openai(timeout=_TIMEOUT_S, max_retries=_RETRIES) as api,
                threads(_AT_ONCE, "score_model") as pool,
            ):
                waiting = [pool.submit(self._one, api, grader, chat) for chat in asked]
                return [result_of(future) for future in waiting]
        except BmtClientError as error:
            raise ConfigError(f"grader: score_model: {error}") from None

    def _one(self, api: Any, grader: ScoreModel, chat: Sequence[tuple[str, str]]) -> float:
        sampling = dict(grader.sampling)
        try:
            reply = api.chat.completions.create(
                model=grader.model,
                messages=[{"role": role, "content": text} for role, text in chat],
                max_tokens=sampling.pop("max_completions_tokens", _MAX_TOKENS),
                # Greedy by default: the same answer has the same score.
                **{"temperature": 0.0, **sampling},
                extra_body={k: v for k, v in NEUTRAL_SAMPLING.items() if k not in sampling},
            )
        except openai.APIStatusError as error:
            failed = self._failed(grader, f"answered {error.status_code}: {error.message}")
            # Of the server, as its absence: another attempt at the job may have its answers.
            away = error.status_code in (408, 429) or error.status_code >= 500
            raise (RolloutError(str(failed)) if away else failed) from None
        except openai.APIConnectionError as error:
            raise RolloutError(str(self._failed(grader, f"did not answer ({error})"))) from None
        except openai.APIError as error:
            raise self._failed(grader, f"did not answer ({error})") from None
        said = reply.choices[0].message.content or ""
        number = read_number(completion_of(said).answer)
        if number is None:
            raise self._failed(
                grader,
                f"replied {said[:80]!r}, which is no number; ask for a number alone in its input, "
                "or raise sampling_params.max_completions_tokens",
            )
        low, high = grader.range
        return min(high, max(low, number))

    def _failed(self, grader: ScoreModel, why: str) -> GraderError:
        return GraderError(f"score_model {grader.name!r}: {grader.model} {why[:600]}")


def read_number(reply: str) -> float | None:
    """The number that a reply is, or states as its result or score; None without one."""
    for form in _FORMS:
        if found := form.fullmatch(reply.strip()):
            number = float(found[1])
            return number if math.isfinite(number) else None
    return None
