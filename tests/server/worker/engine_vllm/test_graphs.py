"""Mask manager in CUDA graph captures and dummy runs, without a GPU."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
from bmt_server.settings import Settings
from bmt_server.worker.kernels import selection

vllm = pytest.importorskip("vllm")

from bmt_server.vllm_integration import platform_limits, unsupported_flags  # noqa: E402
from bmt_server.worker.engine_vllm.mask_manager import MaskManager, kernel_limits  # noqa: E402
from vllm.config import CUDAGraphMode  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin  # noqa: E402


class Log:
    """Stand-in for the runtime that records the manager's calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.store = SimpleNamespace(adapters={1, 2}, knows={1, 2}.__contains__)

    def prepare_capture(self, tokens: int) -> None:
        self.calls.append(("capture", tokens))

    def begin_step(self, tokens: np.ndarray) -> None:
        self.calls.append(("step", *tokens.tolist()))

    def forget_values(self) -> None:
        self.calls.append(("forget",))

    def remove(self, adapter: int) -> bool:
        self.calls.append(("remove", adapter))
        return True


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def manager(log) -> MaskManager:
    return MaskManager(log, files=None, loader=None)


class Runner(LoRAModelRunnerMixin):
    """vLLM's own code for dummy runs, with our manager."""

    def __init__(self, manager: MaskManager) -> None:
        self.lora_manager = manager


def test_only_a_capture_with_adapters_prepares_masks(manager, log):
    lora = SimpleNamespace(max_loras=4, max_lora_rank=16)
    runner = Runner(manager)
    scheduled = np.array([1, 1, 3], np.int32)
    for active in (0, lora.max_loras + 1, lora.max_loras):
        with runner.maybe_dummy_run_with_lora(
            lora, scheduled, np.ones(3, np.int32), remove_lora=False, num_active_loras=active
        ):
            pass
    assert log.calls == [("step", 0, 0, 0, 0, 0), ("capture", 5), ("capture", 5)]


def test_the_end_of_a_dummy_run_removes_no_mask(manager, log):
    lora = SimpleNamespace(max_loras=2, max_lora_rank=16)
    with Runner(manager).maybe_setup_dummy_loras(lora):
        pass
    assert log.calls == []
    # Base weights were replaced: no values read from them may stay.
    manager.remove_all_adapters()
    assert log.calls == [("forget",), ("remove", 1), ("remove", 2)]


def test_a_step_with_masks_is_not_a_capture(manager, log):
    manager.add_dummy_lora(LoRARequest("warmup_9", 9, "/none"), rank=8)
    mapping = SimpleNamespace(index_mapping=(1, 0, 2))
    requests = {LoRARequest("a", 1, "/a"), LoRARequest("b", 2, "/b")}
    manager.set_active_adapters(requests, mapping)
    assert log.calls == [("step", 1, 0, 2)]


@pytest.mark.parametrize(
    ("mode", "largest", "expected"),
    [(CUDAGraphMode.FULL_AND_PIECEWISE, 512, 512), (CUDAGraphMode.NONE, 512, 0), (None, None, 0)],
)
def test_the_kernel_gets_the_largest_graph(mode, largest, expected):
    compilation = SimpleNamespace(cudagraph_mode=mode, max_cudagraph_capture_size=largest)
    config = SimpleNamespace(
        compilation_config=compilation,
        scheduler_config=SimpleNamespace(max_num_batched_tokens=8192),
    )
    settings = Settings(model_id="m", model_path="m", fingerprint="ab" * 32, gates={"g": (2, 2)})
    limits = kernel_limits(settings, config)
    assert (limits.max_tokens, limits.graph_tokens) == (8192, expected)
    assert limits.memory_bytes == settings.mask_memory_bytes


@pytest.mark.found
@pytest.mark.parametrize("cuda_alike", [True, False])
def test_devices_without_a_kernel_for_graphs_are_eager(monkeypatch, cuda_alike):
    """CUDA without triton, ROCm, and devices that are like neither CUDA nor a CPU."""
    assert platform_limits.eager_reason() is None
    device = SimpleNamespace(is_cuda_alike=lambda: cuda_alike, is_cpu=lambda: False)
    monkeypatch.setattr(platform_limits, "current_platform", device)
    monkeypatch.setattr(selection, "supports_cuda_graphs", lambda: False)
    assert "triton" in platform_limits.eager_reason()
    monkeypatch.setattr(selection, "supports_cuda_graphs", lambda: True)
    assert platform_limits.eager_reason() is None


@pytest.mark.parametrize(("flag", "value"), [("enable_dbo", True), ("ubatch_size", 2)])
def test_steps_in_parts_are_refused(flag, value):
    unsupported_flags.check(Namespace(**{flag: type(value)()}))
    with pytest.raises(unsupported_flags.UnsupportedFlagError, match="each other's masks"):
        unsupported_flags.check(Namespace(**{flag: value}))


def test_vllm_picks_graphs_as_the_kernel_expects():
    """No adapter: a separate graph. Any number: the one captured with dummies. Longer: no graph."""
    from vllm.config import CompilationConfig, LoRAConfig
    from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
    from vllm.v1.worker.gpu.lora_utils import get_lora_capture_cases

    lora = LoRAConfig(max_loras=4, max_cpu_loras=4)
    sizes = [1, 2, 4, 8]
    compilation = CompilationConfig(
        cudagraph_mode=CUDAGraphMode.FULL,
        cudagraph_capture_sizes=sizes,
        max_cudagraph_capture_size=sizes[-1],
    )
    assert get_lora_capture_cases(lora, compilation) == [0, 5]
    config = SimpleNamespace(
        compilation_config=compilation,
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        lora_config=lora,
        num_speculative_tokens=0,
    )
    dispatcher = CudagraphDispatcher(config)
    dispatcher.initialize_cudagraph_keys(CUDAGraphMode.FULL)
    for masks, captured in ((0, 0), (1, 5), (4, 5)):
        mode, graph = dispatcher.dispatch(3, has_lora=masks > 0, num_active_loras=masks)
        assert mode == CUDAGraphMode.FULL
        assert (graph.num_tokens, graph.num_active_loras) == (4, captured)
    mode, _ = dispatcher.dispatch(9, has_lora=True, num_active_loras=2)
    assert mode == CUDAGraphMode.NONE
