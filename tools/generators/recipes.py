"""Recipes of the paper's tables: one file a row, under recipes/paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "recipes" / "paper"
SUBJECTS = (
    *("biology", "business", "chemistry", "computer+science", "economics", "engineering"),
    *("health", "history", "law", "math", "other", "philosophy", "physics", "psychology"),
)
SUBTASKS = (
    *("boardgame_qa", "boolean_expressions", "buggy_tables", "causal_understanding"),
    *("disambiguation_qa", "dyck_languages", "geometric_shapes", "hyperbaton", "linguini"),
    *("movie_recommendation", "multistep_arithmetic", "nycc", "object_counting"),
    *("object_properties", "sarc_triples", "shuffled_objects", "spatial_reasoning", "sportqa"),
    *("temporal_sequence", "time_arithmetic", "web_of_lies", "word_sorting", "zebra_puzzles"),
)
METHODS = {
    "base": "Base",
    "full": "FPT",
    "lora-1": "LoRA r=1",
    "lora-4": "LoRA r=4",
    "mth-99": "MTH 99 %",
    "mth-99.95": "MTH 99.95 %",
    "bmt": "BMT",
}
SETTINGS = {"llama-gsm8k": "grpo-gsm8k", "qwen-simplerl": "grpo-simplerl"}
# Models that one table looks at alone, the greatest of each setting.
LARGEST = {"llama-gsm8k": "meta-llama/Meta-Llama-3-8B-Instruct", "qwen-simplerl": "Qwen/Qwen2.5-7B"}
MMLU_PRO = [f"mmlu-pro:TIGER-Lab/MMLU-Pro?split=test&subject={s}" for s in SUBJECTS]
BBEH = [f"bbeh:data/bbeh/bbeh_{task}.json" for task in SUBTASKS]
SUITES = {"mmlu-pro": (1024, 16, MMLU_PRO), "bbeh": (8192, 48, BBEH)}


def recipes() -> Iterator[tuple[str, str, str, list[str]]]:
    """(file name, what it is, what it extends, its own lines)."""
    for setting, shared in SETTINGS.items():
        for method, row in METHODS.items():
            also = {"bmt": "; its logs are table 7"}.get(method, "")
            also += "; its evaluation sets are table 8" if setting == "qwen-simplerl" else ""
            title = f"Table 1, row {row}, {setting}{also}"
            yield f"table1-{setting}-{method}", title, shared, [f"methods: {method}"]
        title = f"Table 2, row Wanda, {setting}; its levels are table {_levels(setting)}"
        yield f"table2-{setting}-wanda", title, shared, ["methods: wanda"]
    for suite, (length, tokens, datasets) in SUITES.items():
        for method in ("base", "full", "bmt"):
            lines = [f"methods: {method}", f"max_length: {length}"]
            lines += [f"max_new_tokens: {tokens}", "datasets:", *(f"  - {d}" for d in datasets)]
            yield (
                f"table3-{suite}-{method}",
                f"Table 3, row {METHODS[method]}, {suite}",
                "sft",
                lines,
            )
    for method in ("base", "full", "bmt"):
        lines = [f"methods: {method}"]
        title = f"Table 4, row {METHODS[method]}"
        yield f"table4-{method}", title, "sdft-toolalpaca", lines
    for number, setting in ((5, "llama-gsm8k"), (6, "qwen-simplerl")):
        for share in (2048, 4096, 8192):
            lines = ["methods: bmt", f"model: {LARGEST[setting]}", f"eta: {1 / share!r}", "sweep:"]
            lines += ["  reg_lambda: [0.0, 0.00001]", "  learning_rate: [0.0001, 0.0003]"]
            title = f"Table {number}, row η = 1/{share}"
            yield f"table{number}-eta-{share}", title, SETTINGS[setting], lines
    for setting, shared in SETTINGS.items():
        methods = "full, lora-1, lora-4, mth-99, mth-99.95, bmt"
        lines = [f"methods: {methods}", f"model: {LARGEST[setting]}", "geometry: true"]
        yield f"figure3-{setting}", f"Figure 3, {setting}", shared, lines
    lines = ["methods: full, bmt", "track_every: 25", "retention: lm-eval"]
    yield "figure2", "Figure 2, which needs lm-eval", "grpo-gsm8k", lines


def _levels(setting: str) -> int:
    return 11 if setting == "llama-gsm8k" else 12


def texts() -> dict[str, str]:
    """Every file's text by its name."""
    return {
        f"{name}.yaml": "\n".join([f"# {title}.", f"extends: shared/{shared}.yaml", *lines]) + "\n"
        for name, title, shared, lines in recipes()
    }


def pages() -> dict[Path, str | None]:
    """Each file's text; None for a file of a row that is gone."""
    made: dict[Path, str | None] = {TARGET / name: text for name, text in texts().items()}
    return {**dict.fromkeys(TARGET.glob("*.yaml")), **made}
