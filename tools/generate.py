"""Write every generated page of the project; with `--check`, only compare.

    python tools/generate.py [--check] [NAME ...]

Exit code 1 if `--check` finds a page that is out of date.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Tables of results in the README, then what follows from commands, chart and scenarios.
GENERATORS = (
    "cli_reference",
    "settings",
    "http_api",
    "chart",
    "operate",
    "models",
    "readme_figures",
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the project's generated pages.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(GENERATORS))
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args()
    if unknown := set(options.names) - set(GENERATORS):
        parser.error(
            f"no generator {', '.join(sorted(unknown))}; there are {', '.join(GENERATORS)}"
        )
    # Generators import the project's packages and each other's folder by name.
    sys.path.insert(0, str(ROOT))
    stale = 0
    for name in options.names or GENERATORS:
        pages = importlib.import_module(f"tools.generators.{name}").pages()
        for path, text in pages.items():
            current = path.read_text() if path.exists() else None
            if current == text:
                continue
            stale += 1
            if options.check:
                print(f"{path.relative_to(ROOT)} is out of date; run `make docs`")
            elif text is None:
                path.unlink()
            else:
                path.write_text(text)
    return int(options.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
