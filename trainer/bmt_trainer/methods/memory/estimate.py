"""An estimate of a run's memory on its device, and the arithmetic of each part.

What stays is the base, the gates with their gradients and AdamW's moments, and the cast copies of
frozen weights; on top comes the largest of the phases that follow each other: calibration,
rollouts, training and evaluation. Each bounds its phase from above: every row is as long as the
longest. Fragments of the allocator, kernels' workspaces and the libraries themselves (0.5 to 1 GiB)
are not counted. Units are bytes; GiB = 2**30 and MiB = 2**20 bytes in text.

Legend: B rows, S tokens of a row, P of its prompt, N new ones, L layers, d, f, q, k features
(`Shapes.hidden`, `inner`, `query`, `keys`), V vocabulary, c bytes of a computed number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Literal

from bmt_trainer.masking.live_gates import LIMIT
from bmt_trainer.methods.config import (
    DpoConfig,
    GrpoConfig,
    OnPolicyConfig,
    PreferenceConfig,
    SdftConfig,
    TrainConfig,
)
from bmt_trainer.methods.memory.shapes import Shapes
from bmt_trainer.methods.validation.log_probabilities import LOGITS, ROWS

GIB = 2**30
#: What a method trains: gates, all weights in fp32, or adapters of a thousandth of the weights.
Trained = Literal["gates", "weights", "adapter"]

# TRL 1.16 (trainer/utils.py, `_CHUNKED_LOGPROB_CHUNK_SIZE`; kernels/chunked_logprob.py,
# `TOKEN_CHUNK_SIZE`): logits of a loss are in memory in tiles of so many.
_TILE_TOKENS, _TILE_VOCABULARY = 4096, 32768
# Copies of a tile in fp32 where TRL has no kernel of Triton (`_backward_tile`: y, z, log_p, p,
# grad, is_target and a product).
_TILE_COPIES = 7
# fp32 copies of the vocabulary's scores of each sampled token (`rollouts.local.sample`).
_SAMPLED_COPIES = 4
# Copies of the vocabulary's scores of each token in SDFT's loss, in fp32: two log-softmaxes, their
# product and its terms, and gradients of as many (TRL 1.16, experimental/sdft/loss_utils.py).
_DISTILLED_COPIES = 7
# fp32 matrices of a soft weight's backward pass (`masked_linear`): W̃, σ(-αG), its argument, a cast
# weight and the gradient.
_MATRICES = 5
# Of the device's memory, for rollouts and what stays: the estimate leaves out what libraries take.
_ROLLOUT_SHARE = 0.75


@dataclass(frozen=True)
class Part:
    """Bytes of one part, and how they come about."""

    bytes: int
    arithmetic: str

    def __str__(self) -> str:
        return f"{gib(self.bytes)} ({self.arithmetic})"


@dataclass(frozen=True)
class Estimate:
    """Memory of a run: parts that stay, and phases of which one is in memory at a time."""

    kept: Mapping[str, Part] = field(default_factory=dict)
    phases: Mapping[str, Part] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Bytes at most."""
        largest = max((part.bytes for part in self.phases.values()), default=0)
        return sum(part.bytes for part in self.kept.values()) + largest

    def line(self, what: str = "memory") -> str:
        """The estimate in one line, with the largest phase."""
        name, largest = max(self.phases.items(), key=lambda item: item[1].bytes)
        parts = [f"{n} {part}" for n, part in self.kept.items() if part.bytes]
        return f"{what}: about {gib(self.peak)} at most: {' + '.join(parts)} + {name} {largest}"


def gib(count: int) -> str:
    """Bytes as text, in GiB, or below one in MiB."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.0f} MiB"


def estimate(
    config: TrainConfig,
    shapes: Shapes,
    *,
    longest: int | None = None,
    on_gpu: bool = True,
    processes: int = 1,
    trained: Trained = "gates",
    gates: int | None = None,
    memory: int | None = None,
) -> Estimate:
    """The memory of one process of a run.

    Of several processes each loads the whole model, which FSDP2 shards for training alone, so the
    parts that stay count in full.

    longest: tokens of the longest training example, or of its prompt if the run answers it; by
    default `max_length`, the setting's bound. on_gpu: TRL's loss has a kernel of Triton there.
    trained: of a comparison's methods. gates: the number that is trained, of live gates as many as
    Eq. 9 is expected to leave by default. memory: of the device, which bounds rollouts.
    """
    if gates is None:
        gates = round(shapes.gates * live_share(config))
    longest = longest or config.max_length
    work = _Work(config, shapes, longest, on_gpu, processes, trained, gates, memory)
    return Estimate(work.kept(), dict(work.phases()))


def rollout_rows(
    config: OnPolicyConfig,
    shapes: Shapes,
    *,
    longest: int,
    new: int | None = None,
    memory: int | None,
    processes: int = 1,
    trained: Trained = "gates",
) -> int:
    """Completions that transformers samples at once in a process, the same in each step of a run:
    of the settings, or as many as fit in `memory`, by the estimate, at most all of a step.

    new: tokens of a completion, by default `max_new_tokens`.
    """
    if new is not None:
        config = replace(config, max_new_tokens=new)
    gates = round(shapes.gates * live_share(config))
    work = _Work(config, shapes, longest, True, processes, trained, gates, memory)
    return work.rollouts(config)[0]


def live_share(config: TrainConfig) -> float:
    """The share of the gates that a run is expected to train: all, or the live ones.

    Eq. 9's gates are N(mean, std²), but for the share eta, and those with αG <= LIMIT are live.
    """
    alpha = config.live_alpha if isinstance(config, GrpoConfig) else None
    if alpha is None:
        return 1.0
    low = LIMIT / alpha - config.init_mean
    below = NormalDist().cdf(low / config.init_std) if config.init_std else float(low >= 0)
    return min(1.0, config.eta + (1 - config.eta) * below)


@dataclass(frozen=True)
class _Work:
    config: TrainConfig
    shapes: Shapes
    longest: int
    on_gpu: bool
    processes: int
    trained: Trained
    gates: int
    memory: int | None = None

    def kept(self) -> dict[str, Part]:
        s, masks = self.shapes, self.trained == "gates"
        width = 4 if self.trained == "weights" else s.width
        made = {"base": Part(s.weights * width, f"{s.weights:,} weights x {width} bytes")}
        if masks:
            count = self.gates
            # The gate, its gradient and AdamW's two moments, each in fp32; the teacher's gate, or
            # the position of a live one.
            each = 16 + (4 if isinstance(self.config, SdftConfig) else 0)
            each += 8 if count < s.gates else 0
            made["gates"] = Part(count * each, f"{count:,} gates x {each} bytes")
        else:
            count = s.weights if self.trained == "weights" else s.weights // 1000
            each = 12 if self.trained == "weights" else 16
            made["trained"] = Part(count * each, f"{count:,} numbers x {each} bytes")
        if isinstance(self.config, OnPolicyConfig) and self.config.rollouts == "vllm":
            share = self.config.vllm_memory
            size = int(share * (self.memory or 0))
            made["vLLM"] = Part(size, f"at most {share:g} of the device's memory")
        if width := self._second_model():
            made["second model"] = Part(s.weights * width, f"{s.weights:,} weights x {width} bytes")
        return made

    def _second_model(self) -> int:
        """Bytes of a weight of a model besides the trained one.

        A mask's reference and teacher are the base itself. TRL's teacher is a copy in fp32, its
        reference as the checkpoint.
        """
        if self.trained != "weights":
            return 0
        if isinstance(self.config, SdftConfig):
            return 4
        return self.shapes.width if isinstance(self.config, GrpoConfig) and self.config.beta else 0

    def phases(self) -> Iterator[tuple[str, Part]]:
        config, rows = self.config, self.config.eval_batch_size
        if self.trained == "gates" and config.from_mask is None:
            yield "calibration", self._forward(rows, self.longest)
        if isinstance(config, OnPolicyConfig):
            sampled, prompt = self.rollouts(config)
            if config.server is None and config.rollouts != "vllm":
                yield "rollouts", self._generation(sampled, prompt, config.max_new_tokens)
        yield "training", self._training()
        if isinstance(config, PreferenceConfig):
            yield "evaluation", self._scored()
        else:
            yield "evaluation", self._generation(rows, self.longest, config.max_new_tokens)
            if config.validation and not isinstance(config, OnPolicyConfig):
                yield "validation", self._scored()

    def _scored(self) -> Part:
        """Logits of given answers: as computed, in fp32, and their log-softmax."""
        s = self.shapes
        positions = min(ROWS * self.longest, max(1, LOGITS // s.vocabulary))
        each = s.computed + 8
        return Part(
            positions * s.vocabulary * each,
            f"{positions:,} positions x {s.vocabulary:,} logits x {each} bytes",
        )

    def rollouts(self, config: OnPolicyConfig) -> tuple[int, int]:
        """Sequences that are sampled at once in a process, and tokens of a prompt."""
        each = config.completions if isinstance(config, GrpoConfig) else 1
        rows = max(1, config.prompts_per_step * each // self.processes)
        most = config.rollout_batch or self._fitting(config)
        # The student's prompt is shorter than the teacher's.
        return min(rows, most), self.longest

    def _fitting(self, config: OnPolicyConfig) -> int:
        """Rows of rollouts that fit in the memory, at least one; any number if it is not known."""
        if self.memory is None:
            return 1 << 31
        one, two = (
            self._generation(rows, self.longest, config.max_new_tokens).bytes for rows in (1, 2)
        )
        kept = sum(part.bytes for part in self.kept().values())
        free = _ROLLOUT_SHARE * self.memory - kept - (2 * one - two)
        return max(1, int(free // (two - one)))

    def _generation(self, rows: int, prompt: int, new: int) -> Part:
        """Keys and values of all tokens, scores of one token, and the hard weights."""
        s, tokens = self.shapes, prompt + new
        # A layer's keys and values are joined with the new token's, or selected, in a second copy.
        cache = rows * tokens * (s.layers + 1) * 2 * s.keys * s.computed
        scores = rows * s.vocabulary * (s.computed + 4 * _SAMPLED_COPIES)
        hard = max(s.gates, s.held) * s.width if self.trained == "gates" else 0
        return Part(
            cache + scores + hard,
            f"{rows:,} x {tokens:,} tokens x {s.layers + 1} x {2 * s.keys:,} keys and values x "
            f"{s.computed} bytes + scores {gib(scores)} + hard weights {gib(hard)}",
        )

    def _forward(self, rows: int, length: int) -> Part:
        """A forward pass without gradients, and Wanda's scores of the largest matrix."""
        s, tokens = self.shapes, rows * length
        each = 4 * s.hidden * 3 + s.computed * (3 * s.inner + s.hidden)
        scores = 4 * _MATRICES * s.largest
        return Part(
            tokens * each + scores,
            f"{rows:,} x {length:,} tokens x {each:,} bytes + scores {gib(scores)}",
        )

    def _training(self) -> Part:
        config, s = self.config, self.shapes
        rows, length, scored = self._step()
        tokens = rows * length
        each = self._saved()
        if config.gradient_checkpointing:
            kept = s.layers * s.hidden * max(s.width, s.computed) + each
            layers = f"({s.layers} x {s.hidden:,} numbers and one layer's {each:,} bytes)"
        else:
            kept = s.layers * each
            layers = f"{s.layers} x {each:,} bytes"
        # bool masks of attention, and their copy as numbers to add.
        attention = rows * length**2 * (1 + s.computed)
        casts = 0
        if s.computed < s.width:
            # Autocast's copies of frozen weights are kept for the backward pass.
            casts = s.computed * max(0, s.weights - s.gates - s.embeddings)
            casts = casts // s.layers if config.gradient_checkpointing else casts
        head = self._head(rows, scored)
        stacked = s.stacked * s.width if self.trained == "gates" else 0
        each_stack = stacked // s.layers
        if config.gradient_checkpointing:
            stacked = each_stack
        layer = (
            _MATRICES * 4 * s.largest
            + each_stack
            + tokens * s.computed * (3 * s.inner + 2 * s.hidden)
        )
        last = max(head, layer)
        return Part(
            tokens * kept + attention + casts + stacked + last,
            f"{rows:,} x {length:,} tokens x {layers} + attention {gib(attention)}"
            + (f" + cast weights {gib(casts)}" if casts else "")
            + (f" + soft weights of experts {gib(stacked)}" if stacked else "")
            + f" + {'logits' if head >= layer else 'a layer'} {gib(last)}",
        )

    def _step(self) -> tuple[int, int, int]:
        """Rows of a forward pass, tokens of each, and tokens of each whose logits are computed."""
        config = self.config
        if isinstance(config, OnPolicyConfig):
            new = config.max_new_tokens
            return config.micro_batch, self.longest + new, new
        rows: int = config.batch_size  # type: ignore[attr-defined]
        length = config.max_length if getattr(config, "packing", False) else self.longest
        return rows * (2 if isinstance(config, DpoConfig) else 1), length, length

    def _saved(self) -> int:
        """Bytes of a token that a layer keeps for its backward pass.

        Two norms in fp32, the input of the masked projection, queries before and after attention,
        keys and values, and gate, activation and up projection. Frozen projections keep no input.
        """
        s = self.shapes
        numbers = s.hidden + 2 * s.query + 2 * s.keys + 3 * s.inner
        return 2 * 4 * s.hidden + s.computed * numbers

    def _head(self, rows: int, scored: int) -> int:
        """Bytes of the logits and their gradients."""
        s, tokens = self.shapes, rows * scored
        if isinstance(self.config, SdftConfig):
            return tokens * s.vocabulary * 4 * _DISTILLED_COPIES
        tile = min(tokens, _TILE_TOKENS)
        size = tile * _TILE_VOCABULARY * s.computed
        if not self.on_gpu:
            size += tile * min(s.vocabulary, _TILE_VOCABULARY) * 4 * _TILE_COPIES
        return size
