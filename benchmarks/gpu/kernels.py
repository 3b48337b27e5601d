"""Kernels by themselves: correctness, added time by batch, beside vLLM's LoRA, and host time."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from functools import partial

import numpy as np
import torch

from benchmarks.gpu.parts import Job, Keep
from benchmarks.harness.environment import ROOT
from benchmarks.suites.gpu import Model, Race, Sizes, captured, on_gpu

DECODE, MASKS = (1, 8, 16, 32, 64, 128, 256, 512), (1, 4, 16, 64, 256)
PREFILL, PREFILL_MASKS = (1024, 8192), (1, 4, 64)
PAIRS = 9


def check(job: Job, keep: Keep) -> None:
    """The tests of the kernels on a real GPU; on a CPU there is nothing to run."""
    if not torch.cuda.is_available():
        keep("tests", "not run: no CUDA device")
        return
    tests = "tests/server/worker/kernels/test_gpu.py"
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", tests]
    last = "no output"
    # Each line as it comes, so that the log shows how far a run came that is out of time.
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        for row in running.stdout:
            print(row, end="", flush=True)
            last = row.strip() or last
    keep("tests", last)
    if running.returncode:
        raise RuntimeError(f"the kernels' tests ended with {running.returncode}: {last}")


def sweep(job: Job, keep: Keep) -> None:
    """Microseconds a layer of gate and up, and those that masks add, by tokens and masks."""
    from bmt_server.worker.kernels.triton.kernel import TritonKernel

    keep("device", _device())
    sizes = Sizes(masks=max(MASKS), decode=DECODE, prefill=PREFILL)
    if job.tiny:
        shape = {"layers": 2, "rows": 70, "cols": 48, "masks": 4}
        sizes = Sizes(**shape, sparsity=0.05, decode=(1, 32), prefill=(80,), graphs=32)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, race = Model(sizes, device, TritonKernel), _race()
    for kind, counts in (("decode", sizes.decode), ("prefill", sizes.prefill)):
        for tokens in counts:
            # A prompt without masks is in no graph and has no launch.
            for masks in (0, *MASKS) if kind == "decode" else PREFILL_MASKS:
                if masks <= min(tokens, sizes.masks):
                    adapters = np.arange(tokens) % masks + 1 if masks else np.zeros(tokens)
                    if kind == "prefill":
                        adapters = np.sort(adapters)
                    bare, added = _added(model, adapters.astype(np.int64), race)
                    figures = {"product_us": bare, "added_us": added}
                    measured = figures if device.type == "cuda" else "ran; not measured"
                    keep(f"{kind} {tokens} tokens, {masks} masks", measured)


def _added(model: Model, adapters: np.ndarray, race: Race) -> tuple[float, float]:
    x = torch.randn(len(adapters), model.sizes.cols, device=model.device, dtype=model.sizes.dtype)
    model.kernel.plan(adapters, model.masks if adapters.any() else {})
    bare, masked = race(partial(model.product, x), partial(model.corrected, x))
    each = 1000 / model.sizes.layers
    return round(bare * each, 2), round((masked - bare) * each, 2)


def lora(job: Job, keep: Keep) -> None:
    """Microseconds a layer that vLLM's LoRA kernels add, with one adapter and with 64."""
    if not torch.cuda.is_available():
        keep("lora", "not run: vLLM's kernels need a CUDA device")
        return
    from benchmarks.suites import gpu_lora as suite

    race, count = on_gpu(PAIRS, captured), 64
    weights = [suite._random(2 * suite.MIDDLE, suite.HIDDEN) for _ in range(suite.LAYERS)]
    for what, projections in (("gate_up", suite.GATE_UP), ("all", suite.ALL)):
        for rank in (1, 16):
            adapters = suite.Lora(projections, count, rank)
            for tokens in (1, 32, 256, 1024):
                x = {c: suite._random(tokens, c) for c, _ in projections.values()}
                x.setdefault(suite.HIDDEN, suite._random(tokens, suite.HIDDEN))
                y = {n: suite._random(tokens, a.rows) for n, a in adapters.adapters.items()}
                step = partial(suite._step, weights, x[suite.HIDDEN])
                for used in (1, min(count, tokens)):
                    adapters.meta.prepare_tensors((torch.arange(tokens) % used).int().cuda())
                    bare, ours = race(partial(step, None, x, y), partial(step, adapters, x, y))
                    added = round((ours - bare) * 1000 / suite.LAYERS, 2)
                    keep(f"{what} r={rank}, {tokens} tokens, {used} adapters", {"added_us": added})


def host(job: Job, keep: Keep) -> None:
    """Milliseconds of the host before a step: a new composition, and the one before."""
    from bmt_server.worker.kernels.triton.kernel import TritonKernel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = {"layers": 1, "rows": 64, "cols": 64, "sparsity": 0.05, "masks": 64}
    model = Model(Sizes(**small, decode=(512,), prefill=(8192,)), device, TritonKernel)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for tokens in (1, 32, 256, 512, 8192):
        steps = [rng.integers(1, 65, tokens) for _ in range(30)]
        if tokens > 512:  # a prompt's tokens are consecutive
            steps = [np.sort(step) for step in steps]
        seconds = []
        for step in steps:
            start = time.perf_counter()
            model.kernel.plan(step, model.masks)
            seconds.append(time.perf_counter() - start)
            if device.type == "cuda":
                torch.cuda.synchronize()
        keep(
            f"plan of {tokens} tokens, 64 masks", {"ms": round(statistics.median(seconds) * 1e3, 3)}
        )


def _race() -> Race:
    if torch.cuda.is_available():
        return on_gpu(PAIRS, captured)

    def once(a: object, b: object) -> tuple[float, float]:
        """No measurement: the works run once, so that a CPU shows that they run."""
        a(), b()  # type: ignore[operator]
        return 0.0, 0.0

    return once


def _device() -> str:
    name = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "none: nothing is measured"
    )
    return f"{name}, torch {torch.__version__}"
