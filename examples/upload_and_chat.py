"""Upload a mask under a name and an alias, and stream a chat with it.

BMT_API_KEY=... python examples/upload_and_chat.py http://127.0.0.1:8000 reverse.bmt "a, b, c"
"""

from __future__ import annotations

import sys

from bmt_client import BmtClient


def main(url: str, file: str, prompt: str) -> None:
    with BmtClient(url) as client:  # the key is $BMT_API_KEY
        version = client.upload(file, alias=["prod"])
        print(f"{version.name} is now {version.model}")
        stream = client.openai().chat.completions.create(
            model=f"{version.name}:prod",
            messages=[{"role": "user", "content": prompt}],
            max_tokens=32,
            stream=True,
        )
        for piece in stream:
            print(piece.choices[0].delta.content or "", end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:4])
