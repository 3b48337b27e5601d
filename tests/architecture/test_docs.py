"""Documents say what is so: links resolve, commands exist, generated pages are current."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
AT_ROOT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in AT_ROOT), *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text()
# The README's links are whole, because it is shown by package indexes too.
OUR_HOST = (
    r"https://(?:github\.com/bmt-adapters/bmt-adapters/(?:blob|tree)|"
    r"raw\.githubusercontent\.com/bmt-adapters/bmt-adapters)/main/"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page):
    """To files that exist, and to headings that they have; those to our own host too."""
    text = page.read_text()
    inline = re.findall(r"\]\(([^)\s]+)\)", text)
    references = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, re.MULTILINE))
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert set(re.findall(r"\]\[([^\]\n]+)\]", prose)) <= set(references)
    for link in (*inline, *references.values()):
        target, _, anchor = link.partition("#")
        ours = re.match(OUR_HOST, target)
        if target.startswith(("http://", "https://", "mailto:")) and not ours:
            continue
        other = ROOT / target[ours.end() :] if ours else page.parent / target if target else page
        assert other.exists(), target
        if anchor and other.suffix == ".md":
            assert anchor in anchors(other), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them; code blocks have none."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def test_files_that_the_readmes_commands_make_are_not_committed():
    """A first key above all, which an sdist would hold too."""
    made = re.findall(r"--(?:output|key-file|data-dir|data) (\S+)", README)
    assert {"reverse.bmt", "data", "data.key"} <= set(made)
    done = subprocess.run(
        ["git", "check-ignore", *(f"{name}/x" if "." not in name else name for name in made)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 128:
        pytest.skip("no repository")
    assert len(done.stdout.split()) == len(made), done.stdout


def test_paths_of_the_contributors_page_exist():
    """Names in code: a path from the root, or from the package that its paragraph is about."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    roots = [ROOT, ROOT / "server/bmt_server", ROOT / "trainer/bmt_trainer", ROOT / "tests"]
    named = {p for p in re.findall(r"`([\w./]+/[\w./]*)`", text) if "NAME" not in p}
    assert len(named) > 6
    missing = [p for p in named if not any((root / p).exists() for root in roots)]
    assert not missing
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", text)) <= targets


def test_files_of_the_host_parse():
    """Issue forms have what the host needs to show them; hooks name files that exist."""
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name == "config.yml":
            assert all({"name", "url", "about"} <= set(link) for link in form["contact_links"])
            continue
        assert {"name", "description", "body"} <= set(form)
        names = [part["id"] for part in form["body"]]
        assert len(set(names)) == len(names)
        assert all(part["attributes"]["label"] for part in form["body"])
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    for repository in hooks["repos"]:
        for hook in repository["hooks"]:
            scripts = [w for w in hook.get("entry", "").split() if w.endswith(".py")]
            assert all((ROOT / script).exists() for script in scripts), hook["id"]


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


@pytest.mark.parametrize(
    "generator", ["cli_reference", "settings", "http_api", "operate", "readme_figures"]
)
def test_generated_pages_are_current(generator):
    command = [sys.executable, str(ROOT / "tools" / "generate.py"), "--check", generator]
    done = subprocess.run(command, cwd=ROOT, check=False)
    assert done.returncode == 0, "out of date: run `make docs`"


def test_the_site_builds(tmp_path):
    """Strictly: every page is in the navigation, every link and reference resolves.

    Nothing is loaded from elsewhere.
    """
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md")))
    loaded = re.compile(
        r"""<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="https?:"""
    )
    assert not [p.name for p in pages if loaded.search(p.read_text())]
    _has_text_for_programs(tmp_path)


def _has_text_for_programs(site: Path) -> None:
    """Each page has its Markdown at its address, with links that hold, and a line in llms.txt."""
    subprocess.run([sys.executable, str(ROOT / "tools/site_text.py"), str(site)], check=True)
    text = (site / "llms.txt").read_text()
    title, summary = text.split("\n\n")[:2]
    assert title.startswith("# ")
    assert summary.startswith("> ")
    listed = re.findall(r"^- \[.+?\]\((\S+)\): .+$", text, re.MULTILINE)
    twins = [p for p in site.rglob("index.md") if p.with_name("index.html").exists()]
    assert sorted(listed) == sorted(str(p.relative_to(site)) for p in twins)
    assert len(twins) == len(list((ROOT / "docs").rglob("*.md")))
    for twin in twins:
        written = twin.read_text()
        assert written.startswith("# "), twin
        assert ":::" not in written, twin
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", written, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)", prose):
            assert re.match(r"\w+:", target) or (twin.parent / target).is_file(), (twin, target)


def test_the_operators_page_has_every_alert():
    named = re.findall(r"alert: (\w+)", (ROOT / "deploy/chart/files/alerts.yaml").read_text())
    page = (ROOT / "docs/operating/operate.md").read_text()
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


def test_the_readmes_links_hold_on_a_package_index():
    links = re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", README, re.MULTILINE)
    assert len(links) > 20
    assert all((a or b).startswith(("https://", "#")) for a, b in links)


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
