"""A server's processes without vLLM: an API process, its engine, the engine's worker.

Each prints "name pid" when it watches its parent. Argument: `launcher` puts a launcher on top.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time

from bmt_server.vllm_integration import process_lifetime

BELOW = {"launcher": "api", "api": "engine", "engine": "worker"}


def run(name: str) -> None:
    process_lifetime.end_with_parent()
    print(name, os.getpid(), flush=True)
    context = multiprocessing.get_context("spawn")
    if below := BELOW.get(name):
        context.Process(target=run, args=(below,)).start()
    time.sleep(600)


if __name__ == "__main__":
    process_lifetime.ignore_signals()
    process_lifetime.mark_root()
    run(sys.argv[1])
