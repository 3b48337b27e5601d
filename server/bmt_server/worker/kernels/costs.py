"""Cost model of masking: seconds of a switch and of a correction, by kernel.

The model is linear in layers, zeros and tokens. Its only use is the rule of mode `auto`
(`switch_policy.py`), which needs the ratio of the two costs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelCosts:
    """Coefficients of the cost model for one kernel, in seconds."""

    switch_layer: float  # of a switch, per layer, independent of the mask
    switch_zero: float  # of a switch, per zero written
    correct_layer: float  # of a corrected step, per layer
    correct_zero: float  # of a corrected step, per zero: its column and value are read once
    correct_token: float  # of a corrected step, per zero and token: one multiply-add

    def switch(self, layers: int, zeros: int) -> float:
        """Seconds of one change between the base and a mask of `zeros` zeros in `layers` layers."""
        return layers * self.switch_layer + zeros * self.switch_zero

    def correction(self, layers: int, zeros: int, tokens: int) -> float:
        """Seconds of the corrections in a step of `tokens` tokens that all use one mask."""
        per_zero = self.correct_zero + tokens * self.correct_token
        return layers * self.correct_layer + zeros * per_zero


# Measured on one core of an AMD EPYC, 30 layers of 1536 x 576 in bf16: 4.1 ms for a switch to a
# mask and back, 0.7 ms + 0.28 ms per token for a corrected step.
PORTABLE = KernelCosts(
    switch_layer=66e-6,
    switch_zero=3e-9,
    correct_layer=20e-6,
    correct_zero=4e-9,
    correct_token=5.5e-9,
)
# Measured on two cores of an AMD EPYC, layers of 14336 x 4096 in bf16, 0.2 % zeros, with the
# benchmarks of switches and of the CPU kernel. A switch touches one cache line per zero; a
# correction reads the mask sequentially and shares its reads among the tokens.
NATIVE = KernelCosts(
    switch_layer=5e-6,
    switch_zero=5e-9,
    correct_layer=1e-6,
    correct_zero=1e-9,
    correct_token=0.08e-9,
)
# Measured on an H100, layers of 14336 x 4096 in bf16, 0.2 % zeros, with the GPU benchmark, except
# switch_layer: a switch is one launch for all layers, outside of the step's graph, and its host
# cost for small masks was not measured. correct_layer excludes the launch itself, which a step in
# place also has. correct_token is the cost of tokens that are corrected one by one. In tiles of 64
# tokens one costs a quarter of it; tiles of 16, which decoding steps have, were not measured. So a
# step of many tokens may cost less than the model says, and the rule switches up to four times as
# early.
GPU = KernelCosts(
    switch_layer=5e-6,
    switch_zero=80e-12,
    correct_layer=2.6e-6,
    correct_zero=1e-12,
    correct_token=4e-12,
)
