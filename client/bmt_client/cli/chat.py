"""Command `chat`: one prompt, or a conversation."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from bmt_client import BmtClient, BmtClientError, ProtocolError, UsageError
from bmt_client import _routes as routes
from bmt_client._connection.events import open_stream

from .output import Output, printable
from .session import Session, session, stdin_text

_HELP = "/reset clears the conversation, /model NAME switches, /exit or Ctrl-D quits"


def chat(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="REF of a mask, or the base model.")
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="Default: stdin, or a conversation on a terminal."),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Maximum length of the answer, tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", min=0.0, help="0 selects the most likely token.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Sampling seed.")] = None,
) -> None:
    """Chat with a model: one prompt, or a conversation."""
    run = session(context)
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    options = {name: value for name, value in options.items() if value is not None}
    messages = [{"role": "system", "content": system}] if system else []
    with run.client() as client:
        conversation = Conversation(client, run.out, model, options, messages)
        if prompt is None and sys.stdin.isatty() and not run.out.as_json:
            _converse(conversation, run)
            return
        if prompt is None or prompt == "-":
            prompt = stdin_text()
        if not prompt.strip():
            raise UsageError("the prompt is empty")
        answer = conversation.ask(prompt)
    if run.out.as_json:
        run.out.data(answer.as_dict(), lambda console: None)


@dataclass
class Answer:
    """Answer received so far."""

    model: str
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "content": self.text,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
        }

    def summary(self) -> str:
        """Version, length and speed: `math@3f9c… · 42 tokens · 38 tokens/s`."""
        parts = [self.model]
        if tokens := self.usage.get("completion_tokens"):
            parts.append(f"{tokens} tokens")
            parts.append(f"{tokens / max(self.seconds, 1e-6):.3g} tokens/s")
        if self.finish_reason == "length":
            parts.append("truncated at the token limit")
        return " · ".join(parts)


@dataclass
class Conversation:
    """Conversation with one model."""

    client: BmtClient
    out: Output
    model: str
    options: dict[str, Any]
    messages: list[dict[str, str]]

    def ask(self, prompt: str) -> Answer:
        """Send `prompt`, print the answer as it arrives, keep both in the conversation."""
        answer = Answer(self.model)
        self.messages.append({"role": "user", "content": prompt})
        try:
            self._stream(answer)
        except BmtClientError:
            # Dropped, so that the next prompt does not follow an unanswered one.
            self.messages.pop()
            if answer.text and not self.out.as_json:
                print(flush=True)
            raise
        except KeyboardInterrupt:
            self._keep(answer)
            raise
        self._keep(answer)
        self.out.note(answer.summary())
        return answer

    def _keep(self, answer: Answer) -> None:
        self.messages.append({"role": "assistant", "content": answer.text})
        if not self.out.as_json:
            print(flush=True)

    def _stream(self, answer: Answer) -> None:
        started = time.monotonic()
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": self.messages,
            "stream_options": {"include_usage": True},
            **self.options,
        }
        with open_stream(self.client, routes.chat(arguments)) as events:
            pieces = 0
            for event in events:
                pieces += self._take(answer, event)
        if not pieces:
            raise ProtocolError("the answer has no part of a chat completion")
        answer.seconds = time.monotonic() - started

    def _take(self, answer: Answer, event: Mapping[str, Any]) -> int:
        """Add an event's text to the answer; return its number of choices."""
        if isinstance(model := event.get("model"), str) and model:
            answer.model = model
        if isinstance(usage := event.get("usage"), Mapping):
            counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
            answer.usage = {n: count for n, count in counts.items() if isinstance(count, int)}
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if not isinstance(choice, Mapping):
                raise ProtocolError(f"a choice of the answer is {choice!r:.80}, not a JSON object")
            if isinstance(reason := choice.get("finish_reason"), str):
                answer.finish_reason = reason
            delta = choice.get("delta")
            if isinstance(delta, Mapping) and isinstance(piece := delta.get("content"), str):
                answer.text += piece
                self._show(piece)
        return len(choices) if isinstance(choices, list) else 0

    def _show(self, piece: str) -> None:
        if self.out.as_json:
            return
        # A model may emit control characters, which only a terminal interprets.
        print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)


def _converse(conversation: Conversation, run: Session) -> None:
    # Line editing and history for input(), if the platform has it.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    run.out.note(f"{conversation.model}; {_HELP}")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        command, _, argument = line.partition(" ")
        if not line:
            continue
        if command in ("/exit", "/quit"):
            return
        if command == "/reset":
            conversation.messages[:] = [m for m in conversation.messages if m["role"] == "system"]
            run.out.note("conversation cleared")
        elif command == "/model" and argument:
            conversation.model = argument.strip()
            run.out.note(f"model: {conversation.model}")
        elif command.startswith("/"):
            run.out.note(_HELP)
        else:
            _one_turn(conversation, run, line)


def _one_turn(conversation: Conversation, run: Session, line: str) -> None:
    try:
        conversation.ask(line)
    except KeyboardInterrupt:
        run.out.note("(stopped)")
    except BmtClientError as error:
        # A failed turn does not end the conversation.
        run.out.error(error, None)
