"""Entry point of `bmt-train` and `python -m bmt_trainer`; needs no optional dependency itself."""

from bmt_core.console_script import run

EXTRAS = {
    **dict.fromkeys(("httpx2", "openai"), ("client",)),
    **dict.fromkeys(("lm_eval", "math_verify", "matplotlib", "peft"), ("paper",)),
    **dict.fromkeys(
        (
            "accelerate",
            "aiohttp",
            "datasets",
            "fsspec",
            "huggingface_hub",
            "pyarrow",
            "reasoning_gym",
            "rich",
            "safetensors",
            "torch",
            "transformers",
            "trl",
            "typer",
            "yaml",
        ),
        ("trainer",),
    ),
    "vllm": ("gpu", "cpu"),
}


def main() -> None:
    run("bmt-train", "bmt_trainer.cli.main", EXTRAS)


if __name__ == "__main__":
    main()
