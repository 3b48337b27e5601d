"""Chat with a mask from LangChain: an answer, a stream, a function call.

BMT_API_KEY=... python examples/neighbors/langchain_chat.py http://127.0.0.1:8000 math:prod "Hello"
"""

from __future__ import annotations

import os
import sys

from langchain_openai import ChatOpenAI


def weather(city: str) -> str:
    """Weather of a city."""
    return f"sunny in {city}"


def main(url: str, model: str, prompt: str) -> None:
    chat = ChatOpenAI(
        model=model,
        base_url=f"{url}/v1",
        api_key=os.environ["BMT_API_KEY"],
        max_completion_tokens=64,
        temperature=0,
    )
    answer = chat.invoke(prompt)
    # The version that answered, for example math@3f9c1a2b4d5e.
    print(f"{answer.response_metadata['model_name']}: {answer.text!r}")

    for piece in chat.stream(prompt):
        print(piece.text, end="|", flush=True)
    print()

    # The server needs a --tool-call-parser; strict holds the arguments to the function's schema.
    called = chat.bind_tools([weather], tool_choice="weather", strict=True).invoke(prompt)
    for call in called.tool_calls:
        print(f"{call['name']}: {call['args']}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
