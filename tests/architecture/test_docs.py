"""Documents say what is so: links resolve, commands exist, generated pages are current."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


def tracked() -> list[str]:
    """Files that git tracks; without git, those of the packages' own folders."""
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode == 0 and done.stdout:
        return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]
    folders = ("core", "trainer", "server", "client", "tests", "tools", "benchmarks", "docs")
    found = (p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file())
    return [str(p.relative_to(ROOT)) for p in found if "__pycache__" not in p.parts]


@pytest.mark.parametrize("generator", ["cli_reference", "settings", "operate", "readme_figures"])
def test_generated_pages_are_current(generator):
    command = [sys.executable, str(ROOT / "tools" / "generate.py"), "--check", generator]
    done = subprocess.run(command, cwd=ROOT, check=False)
    assert done.returncode == 0, "out of date: run `make docs`"


def test_the_operators_page_has_every_alert():
    named = re.findall(r"alert: (\w+)", (ROOT / "deploy/chart/files/alerts.yaml").read_text())
    page = (ROOT / "docs" / "operate.md").read_text()
    assert named
    assert set(re.findall(r"^\| `(Bmt\w+)` \|", page, re.MULTILINE)) == set(named)


def test_every_module_has_a_docstring():
    """Empty files need none."""
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
