"""Ask a base model and its masks with the stock OpenAI client: a mask is a model name.

BMT_API_KEY=... python examples/openai_client.py http://127.0.0.1:8000 "Hello"
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI


def main(url: str, prompt: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ["BMT_API_KEY"])
    for model in client.models.list():
        answer = client.chat.completions.create(
            model=model.id,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=32,
            temperature=0,
        )
        # The answer's model is the version that answered, for example math@3f9c1a2b4d5e.
        print(f"{answer.model}: {answer.choices[0].message.content!r}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
