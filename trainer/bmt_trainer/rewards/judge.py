"""A language model on a server as a reward: it grades each answer from 0 to 10."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bmt_client import BmtClient

from bmt_trainer.errors import ConfigError, RewardError
from bmt_trainer.evaluation.generate import NEUTRAL_SAMPLING
from bmt_trainer.evaluation.thoughts import completion_of
from bmt_trainer.waiting import result_of, threads

#: The judge's instruction without `prompt=FILE`.
RUBRIC = (
    "Grade the answer to a request. 10: right, complete and in the form that the request asks for; "
    "0: wrong or useless.\n\nRequest:\n{prompt}\n\nAnswer:\n{completion}\n\n"
    "Reply with a number from 0 to 10 and nothing else."
)
_FIELDS = re.compile(r"\{(prompt|completion|answer)\}")
# The reply is a number, or a line of it is "Score: NUMBER"; "/10" may follow.
_NUMBER = r"(-?\d+(?:\.\d+)?)\**\s*(?:/\s*10)?\s*\.?"
_ALONE = re.compile(rf"\s*\**{_NUMBER}\**\s*")
_STATED = re.compile(rf"^\W*(?:score|rating|grade)\W*?[:=]\W*?{_NUMBER}\W*$", re.I | re.M)
_HIGHEST = 10


class Judge:
    """`judge:URL?model=NAME`: a model of a bmt-server, or of any server of OpenAI's chat API.

    model: its name there; prompt: a file with the instruction, in which {completion}, {prompt} and
    {answer} are filled in; key: the environment variable of the API key; timeout: of a request, in
    seconds, and retries of it; concurrency: requests at a time; max_tokens: of a reply; unread:
    a reply without a number is an error, or a reward that does not apply.

    The reward is the number divided by 10. Replies are greedy. A judge reads what stands after a
    completion's thoughts, and its own reply is read so too; an empty answer is 0 without asking.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        prompt: Path | None = None,
        key: str = "BMT_API_KEY",
        timeout: float = 60.0,
        retries: int = 2,
        concurrency: int = 32,
        max_tokens: int = 16,
        unread: Literal["error", "none"] = "error",
    ) -> None:
        self._url, self._model, self._unread = url, model, unread
        self._template = RUBRIC if prompt is None else _read(prompt)
        if "{completion}" not in self._template:
            raise ConfigError(f"reward judge:{url}: {prompt} must contain {{completion}}")
        if not (timeout > 0 and retries >= 0 and concurrency >= 1 and max_tokens >= 1):
            raise ConfigError(
                f"reward judge:{url}: timeout {timeout}, retries {retries}, concurrency "
                f"{concurrency} and max_tokens {max_tokens} must be positive"
            )
        BmtClient(url, os.environ.get(key)).close()  # an address or a key that it refuses
        self._key = key
        self._limits: dict[str, Any] = {"timeout": timeout, "max_retries": retries}
        self._max_tokens, self._threads = max_tokens, concurrency

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[Any]
    ) -> list[float | None]:
        """The judge's numbers over 10. Raises RewardError."""
        asked = [
            self._filled(prompt=transcript(p), completion=text, answer=str(a))
            if (text := transcript(c)).strip()
            else None
            for p, c, a in zip(prompts, completions, answer, strict=True)
        ]
        with (
            BmtClient(self._url, os.environ.get(self._key)) as client,
            client.openai(**self._limits) as api,
            threads(self._threads, "judge") as pool,
        ):
            futures = [pool.submit(self._one, api, text) for text in asked]
            return [result_of(future) for future in futures]

    def _filled(self, **values: str) -> str:
        # In one pass: a completion that contains "{answer}" is not filled in itself.
        return _FIELDS.sub(lambda match: values[match[1]], self._template)

    def _one(self, api: Any, text: str | None) -> float | None:
        if text is None:
            return 0.0
        try:
            reply = api.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": text}],
                temperature=0.0,
                max_tokens=self._max_tokens,
                extra_body=NEUTRAL_SAMPLING if self._of_vllm else None,
            )
            said = reply.choices[0].message.content or ""
        except Exception as error:  # whatever the transport and the server raise
            raise RewardError(
                f"reward judge:{self._url}: model {self._model} did not answer "
                f"({type(error).__name__}: {error}); start the server, or raise timeout"
            ) from error
        number = read_number(completion_of(said).answer)
        if number is None and self._unread == "error":
            raise RewardError(
                f"reward judge:{self._url}: {self._model} replied {said[:80]!r}, not a number from "
                "0 to 10; state that in prompt=FILE, raise max_tokens, or set unread=none"
            )
        return None if number is None else number / _HIGHEST

    @property
    def _of_vllm(self) -> bool:
        """False for OpenAI's own endpoint, which refuses vLLM's sampling settings."""
        return "api.openai.com" not in self._url


def read_number(reply: str) -> float | None:
    """The number from 0 to 10 that a reply is, or states as `Score: NUMBER` last; else None."""
    if match := _ALONE.fullmatch(reply):
        text = match[1]
    elif stated := _STATED.findall(reply):
        text = stated[-1]
    else:
        return None
    number = float(text)
    return number if 0 <= number <= _HIGHEST else None


def transcript(turns: Any) -> str:
    """A prompt or completion as text: of a chat of several turns, a line `role: content` each."""
    if isinstance(turns, str):
        return turns
    texts = [str(turn.get("content") or "") for turn in turns]
    if len(turns) == 1:
        return texts[0]
    return "\n".join(f"{t['role']}: {text}" for t, text in zip(turns, texts, strict=True))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"reward judge: prompt {path} cannot be read ({error})") from None
