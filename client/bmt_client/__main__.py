"""Entry point of `bmt-client` and `python -m bmt_client`; needs no optional dependency itself."""

import sys

from bmt_core.console_script import run

EXTRAS = dict.fromkeys(("httpx2", "openai", "rich", "typer"), ("client",))


def main() -> None:
    try:
        run("bmt-client", "bmt_client.cli", EXTRAS)
    except KeyboardInterrupt:
        # While modules are loaded; the commands handle it themselves.
        sys.exit(130)


if __name__ == "__main__":
    main()
