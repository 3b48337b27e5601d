"""vLLM's load generator (`vllm bench serve`), unmodified, in one process for many loads.

    python -m benchmarks.processes.load_child FD

Reads {"args": […], "key": "…"} a line from stdin and writes what `vllm.benchmarks.serve.main`
returns to file descriptor FD. Importing vLLM takes longer than a short load, hence one process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys


def main() -> None:
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as run

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    with os.fdopen(int(sys.argv[1]), "w") as out:
        for line in sys.stdin:
            command = json.loads(line)
            os.environ["OPENAI_API_KEY"] = command["key"]
            try:
                answer = run(parser.parse_args(command["args"]))
            except (Exception, SystemExit) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            out.write(json.dumps(answer, default=str) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
