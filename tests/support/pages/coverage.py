"""The test that runs each block of the README, because comments would make its text longer.

The tutorials say it themselves, see `blocks.py`.
"""

from __future__ import annotations

from tests.support.pages.blocks import ROOT, Block, blocks

README = ROOT / "README.md"
_CLIENT = "tests/architecture/test_readme.py"
_WALK = "tests/system/tutorials/test_readme.py"
#: First words of a block -> the tests that run it.
RUN_BY = {
    "python3 -m venv .venv": (
        "tests/system/install/test_readme_lines.py::test_the_lines_for_cpus",
    ),
    "make setup && export PATH": (
        f"{_WALK}::test_the_quick_start",
        f"{_CLIENT}::test_the_quick_starts_client_lines",
    ),
    "curl -s http": (f"{_WALK}::test_the_quick_start", f"{_CLIENT}::test_the_curl_lines"),
    "from bmt_client import": (f"{_CLIENT}::test_the_python_lines",),
    "from bmt_server.offline import": (f"{_CLIENT}::test_the_offline_lines",),
    "bmt-train data chats.jsonl": (f"{_WALK}::test_the_lines_of_training",),
}
#: First words of a block -> why no test runs it.
NOT_RUN = {
    "git clone": "the address, and two targets of make that are the demo and the tests themselves",
    "docker build": "Docker and a cluster; tests/deploy checks the chart and its example",
}


def readme() -> list[Block]:
    return blocks(README)


def first_words(block: Block) -> list[str]:
    """Keys of both tables that the block begins with."""
    return [words for words in (*RUN_BY, *NOT_RUN) if block.text.startswith(words)]
