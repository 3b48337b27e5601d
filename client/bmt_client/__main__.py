"""Entry point of `bmt-client` and `python -m bmt_client`; needs no optional dependency itself."""

from bmt_core.console_script import run

EXTRAS = dict.fromkeys(("httpx2", "openai", "rich", "typer"), ("client",))


def main() -> None:
    run("bmt-client", "bmt_client.cli", EXTRAS)


if __name__ == "__main__":
    main()
