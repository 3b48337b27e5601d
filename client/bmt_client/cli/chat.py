"""Command `chat`: one prompt, or a conversation."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bmt_client import BmtClientError, Unavailable, UsageError
from bmt_client._transport import Response, error_from_response

from .output import Output, printable
from .session import Session, session

if TYPE_CHECKING:
    import openai

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
    with run.client() as client, client.openai() as openai_client:
        conversation = Conversation(openai_client, run.out, model, options, messages)
        if prompt is None and sys.stdin.isatty() and not run.out.as_json:
            _converse(conversation, run)
            return
        if prompt is None or prompt == "-":
            prompt = sys.stdin.read()
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

    openai_client: openai.OpenAI
    out: Output
    model: str
    options: dict[str, Any]
    messages: list[dict[str, str]]

    def ask(self, prompt: str) -> Answer:
        """Send `prompt`, print the answer as it arrives, keep both in the conversation."""
        import openai

        answer = Answer(self.model)
        self.messages.append({"role": "user", "content": prompt})
        try:
            self._stream(answer)
        except openai.OpenAIError as error:
            # Dropped, so that the next prompt does not follow an unanswered one.
            self.messages.pop()
            raise translate(error) from error
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
        stream = self.openai_client.chat.completions.create(stream=True, **arguments)
        with stream:
            for chunk in stream:
                answer.model = chunk.model or answer.model
                if chunk.usage:
                    answer.usage = {
                        "prompt_tokens": chunk.usage.prompt_tokens,
                        "completion_tokens": chunk.usage.completion_tokens,
                    }
                for choice in chunk.choices:
                    answer.finish_reason = choice.finish_reason or answer.finish_reason
                    if piece := choice.delta.content:
                        answer.text += piece
                        self._show(piece)
        answer.seconds = time.monotonic() - started

    def _show(self, piece: str) -> None:
        if self.out.as_json:
            return
        # A model may emit control characters, which only a terminal interprets.
        print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)


def translate(error: openai.OpenAIError) -> BmtClientError:
    """Convert an error of the OpenAI client, so that hints and exit codes are the same."""
    import openai

    if isinstance(error, openai.APIStatusError):
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        return error_from_response(Response(error.status_code, headers, error.response.content))
    if isinstance(error, openai.APITimeoutError):
        return Unavailable("the server did not answer in time", code="timeout")
    if isinstance(error, openai.APIConnectionError):
        return Unavailable(f"cannot connect: {error.__cause__ or error}", code="connection")
    return BmtClientError(str(error), code="stream_error")


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
