"""Documents say what is so: links resolve, commands exist, generated pages are current."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.gen_file_map import tracked

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("script", ["gen_cli_docs.py", "gen_file_map.py", "gen_operate.py"])
def test_generated_pages_are_current(script):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--check"], cwd=ROOT, check=False
    )
    assert done.returncode == 0, "out of date: run `make docs`"


def test_the_readmes_figures_are_those_of_the_latest_results():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.readme", "--check"], cwd=ROOT, check=False
    )
    assert done.returncode == 0, "out of date: run `make docs`"


def test_the_operators_page_has_every_alert():
    named = re.findall(r"alert: (\w+)", (ROOT / "deploy/chart/files/alerts.yaml").read_text())
    page = (ROOT / "docs" / "operate.md").read_text()
    assert named
    assert set(re.findall(r"^\| `(Bmt\w+)` \|", page, re.MULTILINE)) == set(named)


def test_every_file_says_what_it_is():
    """So that the README's map can name each; empty files need not."""
    modules = {f: ast.parse((ROOT / f).read_text()) for f in tracked() if f.endswith(".py")}
    assert not [f for f, m in modules.items() if m.body and not ast.get_docstring(m)]


def test_readme_commands_exist():
    """Every command of the README's shell blocks is one of ours, known to make, or a plain tool."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("make "):
                assert shlex.split(line, comments=True)[1] in targets
            if line.startswith(("bmt-train", "bmt-server", "bmt-client")):
                program, command, *_ = shlex.split(line.rstrip("& "), comments=True)
                help_page = Path(sys.executable).with_name(program)
                text = subprocess.run(
                    [help_page, command, "--help"], capture_output=True, text=True, check=True
                ).stdout
                flags = re.findall(r"(--[a-z-]+)", line)
                passed_on = {"--served-model-name", "--host", "--port", "--max-model-len"}
                assert all(f in text for f in flags if f not in passed_on), line


def test_readme_python_parses():
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        ast.parse(block)


def test_the_text_speaks_of_the_project_alone():
    """No absolute paths of somebody's machine in anything that is published."""
    private = re.compile(r"/(?:home|root|work|Users)/[A-Za-z]|/tmp/[a-z]/")
    found = [
        f
        for f in tracked()
        if Path(f).suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".json", ""}
        and f != "tests/architecture/test_docs.py"
        and private.search((ROOT / f).read_text(errors="replace"))
    ]
    assert not found
