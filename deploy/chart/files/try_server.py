"""Ask the server at BMT_URL: ready, and with BMT_API_KEY also its models and one token of MODEL.

Runs in the pod of `helm test`, with the standard library alone.
"""

import json
import os
import urllib.error
import urllib.request


def ask(path, body=None):
    """Text of the answer. Exits with the error's text if it is none of 200."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("BMT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(os.environ["BMT_URL"] + path, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{path}: {error} {error.read().decode()[:500]}") from None
    except OSError as error:
        raise SystemExit(f"{path}: {error}") from None


ask("/readyz")
print("ready", flush=True)
if os.environ.get("BMT_API_KEY"):
    model = os.environ["MODEL"]
    served = [entry["id"] for entry in json.loads(ask("/v1/models"))["data"]]
    if model not in served:
        raise SystemExit(f"/v1/models has no {model}: {served[:20]}")
    body = {"model": model, "prompt": "Hello", "max_tokens": 1}
    answer = json.loads(ask("/v1/completions", body))
    print(f"{model} answered {answer['choices'][0]['text']!r}", flush=True)
