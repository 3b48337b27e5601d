"""Writes the README's file map: every file with its own first line. `--check` only compares."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- file map: `make docs` -->\n", "<!-- end of file map -->"
# Files that cannot say what they are.
SAID = {
    ".ci/run": "Lint and all tests on a clean checkout.",
    ".gitignore": "What set-up, tests and demo make.",
    ".dockerignore": "What images are built from.",
    "deploy/chart/.helmignore": "What an installed chart does without.",
    "deploy/chart/Chart.yaml": "The chart's name and versions.",
    "deploy/chart/README.head.md": "What the chart's README begins with.",
    "deploy/chart/values.schema.json": "Which values there are, generated.",
    "deploy/docker/server.cpu.Dockerfile": "The server for CPUs.",
    "deploy/docker/server.gpu.Dockerfile": "The server for NVIDIA GPUs.",
    "deploy/docker/trainer.Dockerfile": "The trainer.",
    "CHANGELOG.md": "What changed for users.",
    "LICENSE": "Apache-2.0.",
    "Makefile": "`make help` lists its targets.",
    "pyproject.toml": "One distribution; extras choose the dependencies.",
    "examples/demo/reverse.yaml": "Settings of the demo's first mask.",
    "examples/demo/sort.yaml": "Settings of the demo's second mask.",
}
FOLDERS = {
    "core": "`bmt_core`: the mask and its file; numpy and zstandard only",
    "trainer": "`bmt_trainer`: the paper's equations on TRL; `bmt-train`",
    "server": "`bmt_server`: vLLM's plugin, the registry, routes and keys; `bmt-server`",
    "client": "`bmt_client`: SDK and `bmt-client`",
    "deploy": "Kubernetes: images and a Helm chart",
    "docs": "pages",
    "examples": "the demo",
    "benchmarks": "`make bench`",
    "experiments": "after the paper, scaled down: `make paper-grpo`",
    "recipes": "settings of experiments",
    "scripts": "set-up and generated pages",
    "tests": "mirror the packages; those marked `engine` start vLLM",
    "": "the rest",
}
# What set-up, tests and demo leave, as in .gitignore.
MADE = {".git", ".venv", ".bmt", "runs", "dist", "build", "__pycache__"}
MADE |= {".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}
# Data that is described where it is made.
SKIPPED = re.compile(
    r"tests/assets/.*|.*/golden/.*|benchmarks/results/.*|deploy/chart/templates/.*|"
    r"deploy/chart/files/dashboard\.json|"
    r".*/py\.typed|.*\.(png|svg)|README\.md"
)


def first_line(name: str) -> str:
    """What a file says of itself in its first sentence; empty where it holds nothing."""
    if name in SAID:
        return SAID[name]
    text = (ROOT / name).read_text(errors="replace")
    if name.endswith(".py"):
        said = ast.get_docstring(ast.parse(text)) or ""
        line = said.split("\n\n")[0].replace("\n", " ")
    else:
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#!")]
        line = re.sub(r"^(#+|//+|/\*+|<!--)\s*|\s*(\*/|-->)$", "", lines[0]) if lines else ""
    sentence = re.split(r"(?<=[.;])(?<!Eq\.)\s", line.strip())[0]
    return sentence.rstrip(";:").replace("|", r"\|")


def tracked() -> list[str]:
    """Files of the project that git knows; without git, those that the project does not make."""
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode == 0 and done.stdout:
        return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]
    found = (p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file())
    return [str(p) for p in found if not MADE & set(p.parts)]


def render() -> str:
    """The map: one closed block a folder, one line a file."""
    groups: dict[str, list[str]] = {folder: [] for folder in FOLDERS}
    for name in sorted(n for n in tracked() if not SKIPPED.fullmatch(n)):
        folder = name.split("/")[0] if "/" in name else ""
        groups[folder if folder in groups else ""].append(name)
    parts = []
    for folder, names in groups.items():
        rows = [(name, first_line(name)) for name in names]
        lines = [f"| [{n.removeprefix(folder + '/')}]({n}) | {text} |" for n, text in rows if text]
        if not lines:
            continue
        title = f"<b>{folder}/</b> " if folder else ""
        head = f"<details><summary>{title}{FOLDERS[folder]}</summary>\n\n| | |\n|---|---|\n"
        parts.append(head.replace("`", "") + "\n".join(lines) + "\n\n</details>\n")
    return "\n".join(parts)


def main() -> int:
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = before + BEGIN + "\n" + render() + "\n" + END + after
    if "--check" in sys.argv:
        return int(made != text)
    README.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
