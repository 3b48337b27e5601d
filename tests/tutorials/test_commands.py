"""Every command of the README and the tutorials: it is run, or the page says why it is not.

What costs minutes runs in tests/system/tutorials. Here the lines are read: programs, flags, files.
"""

from __future__ import annotations

import ast
import re
import subprocess

import pytest

from tests.support.pages.blocks import ROOT, RUNNABLE, TUTORIALS, Block, blocks, commands
from tests.support.pages.coverage import NOT_RUN, RUN_BY, first_words, readme
from tests.support.pages.flags import unknown

#: Blocks that no test runs, by page. A new one is a decision, and is written here.
LEFT_OUT = {"install.md": 1, "moving-from-lora.md": 1}
PLAIN = {
    *("[", "apt", "brew", "break", "cat", "cd", "curl", "docker", "done", "echo", "export"),
    *("for", "git", "grep", "helm", "kill", "kind", "ls", "make", "python", "python3", "sleep"),
    *("tail", "}", "vllm", ".venv/bin/pip", ".venv/bin/bmt-server"),
}
OURS = {"bmt-train", "bmt-server", "bmt-client"}
PAGES = [*TUTORIALS, ROOT / "README.md"]
#: Files of the reader's own that the README names.
READERS_OWN = {"chats.jsonl", "mine.bmt", "path/to/model"}
_FILE = re.compile(r"[\w./-]+\.(?:bmt|csv|jsonl|key|log|py|yaml)$")


def test_the_index_has_the_minutes_of_each_page():
    index = (TUTORIALS[0].parent / "index.md").read_text()
    listed = dict(re.findall(r"\]\(([\w-]+\.md)\) \|.*\| (\d+) \|$", index, re.MULTILINE))
    given = {
        page.name: found[1]
        for page in TUTORIALS
        if (found := re.search(r"about (\d+) minutes", page.read_text()))
    }
    assert len(given) > 5
    assert listed == given


def of(page, language="bash") -> list[Block]:
    return [block for block in blocks(page) if block.language == language]


def test_there_are_tutorials():
    assert {"install.md", "first-mask.md", "own-data.md", "own-reward.md"} <= {
        page.name for page in TUTORIALS
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_programs_and_flags_exist(page):
    for block in of(page):
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        for words in commands(block.text):
            program = next((w for w in words if "=" not in w.partition("/")[0]), "")
            program = program.rpartition("=")[2]
            assert not program or program in PLAIN | OURS, f"{block.place}: {words}"
            assert unknown(words[words.index(program) :] if program in OURS else words) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("bmt-train sft --modle x", "--modle"),
        ("until bmt-client stats; do sleep 2; done", "stats"),
        ("for A in a b; do bmt-client chat x --temprature 0; done", "--temprature"),
        ("A=$(bmt-train sft --modle x)", "--modle"),
        ("ls && { ! bmt-server docter; }", "docter"),
    ],
)
def test_a_wrong_line_is_found(text, wrong):
    assert wrong in [part for words in commands(text) for part in unknown(words)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_parses(page):
    for block in of(page, "python"):
        ast.parse(block.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_commands_read_are_there(page):
    """In the checkout, made by a block before, or by the tutorial that the page goes on with."""
    earlier = [p for p in TUTORIALS if f"]({p.name})," in page.read_text()[:800]]
    made = set(READERS_OWN)
    for block in [b for p in (*earlier, page) for b in blocks(p) if b.language in RUNNABLE]:
        made |= set(re.findall(r"(?:> ?|--output |--key-file )([\w./-]+)", block.text))
        made |= {block.title}
        for words in commands(block.text) if block.language == "bash" else ():
            for word in words[1:]:
                name = re.split(r"[?:]", word)[0]
                if _FILE.fullmatch(name) and not word.startswith("http"):
                    assert name in made or (ROOT / name).exists(), f"{block.place}: {name}"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: p.name)
def test_what_a_tutorial_leaves_out_is_counted(page):
    left_out = [block for block in blocks(page) if block.not_run]
    assert len(left_out) == LEFT_OUT.get(page.name, 0)
    for block in blocks(page):
        if block.run_by:
            exists(block.run_by)


def test_every_block_of_the_readme_is_run_or_has_a_reason():
    found = [first_words(block) for block in readme()]
    assert all(len(words) == 1 for words in found), found
    assert {words for (words,) in found} == set(RUN_BY) | set(NOT_RUN)
    for tests in RUN_BY.values():
        for test in tests:
            exists(test)
    assert len(NOT_RUN) == 2


def exists(test: str) -> None:
    """A test's file and function are there."""
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, test
