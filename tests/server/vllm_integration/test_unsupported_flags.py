"""Host-dependent vLLM options."""

from __future__ import annotations

import platform

import pytest
import torch
from bmt_server.vllm_integration.platform_limits import float32_reason
from vllm.platforms import current_platform


@pytest.mark.parametrize(("level", "wide"), [("AVX2", True), ("DEFAULT", True), ("AVX512", False)])
def test_16_bits_only_if_the_cpu_has_instructions_for_them(monkeypatch, level, wide):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: True)
    assert (float32_reason() is not None) == wide
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert float32_reason() is None
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: False)
    assert float32_reason() is None
