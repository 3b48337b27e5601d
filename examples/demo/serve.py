"""`make serve`: the server in the foreground, on the demo's model or the one named.

Masks, keys and caches stay in `.bmt/server`, so that a second start finds them.
"""

from __future__ import annotations

import argparse
import os
import sys

from model import NAME, ROOT, ModelError, demo_model
from processes import program
from serving import compiler_flags


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default="8000")
    parser.add_argument("model", nargs="?")
    options = parser.parse_args()
    try:
        model = options.model or demo_model()
    except ModelError as error:
        sys.exit(f"serve: {error}")
    data = ROOT / ".bmt" / "server"
    command = [program("bmt-server"), "serve", model]
    command += ["--data-dir", str(data), "--key-file", str(data / "first-key")]
    command += ["--host", "127.0.0.1", "--port", options.port]
    if options.model is None:
        command += ["--served-model-name", NAME, "--max-model-len", "2048"]
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    command += compiler_flags()
    data.mkdir(parents=True, exist_ok=True)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
