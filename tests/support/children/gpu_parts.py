"""Parts of a GPU run that end in each way."""

from __future__ import annotations

import time

from benchmarks.gpu.parts import Job, Keep


def done(job: Job, keep: Keep) -> None:
    keep("tiny", job.tiny)
    keep("figure", 2)


def fails(job: Job, keep: Keep) -> None:
    keep("figure", 1)
    raise RuntimeError("the reason")


def hangs(job: Job, keep: Keep) -> None:
    keep("figure", 1)
    time.sleep(600)
