"""Compare the tests of two revisions: where each test of the older one is now.

    python tools/compare_tests.py OLD_REVISION [--lost]

Prints a line for each test function: its old place, its new place, the targets that run it, and how
many assertions it had and has. A test is found again by its name, else by its body. Exit code 1 if
one is lost or asserts less than before; `--lost` prints only those. Bodies are compared as trees
of statements and constants without names, so that renamed variables do not count.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The share of equal nodes from which on a renamed test counts as found again.
SIMILAR = 0.75
# Tests that became cases of another one, or a rule of another form.
SUCCESSORS = {
    # A table in a docstring is now a list, and each of its 25 cases a case of the test.
    "test_the_table_names_tests_that_exist": "test_each_hostile_case_has_a_test",
    # All generated pages are checked by one command, a case each.
    "test_the_readmes_figures_are_those_of_the_latest_results": "test_generated_pages_are_current",
    # Its classes and methods have other names, and its body is short.
    "test_a_step_is_a_sign_of_life_whoever_is_told_its_figures": (
        "test_a_step_without_stats_is_a_heartbeat"
    ),
    # Decided by a file that the other process writes instead of by the time that passed.
    "test_only_one_of_two_processes_makes_a_file": (
        "test_only_one_of_two_processes_creates_a_file"
    ),
    # Rules for two folders are now rules for every room.
    "test_the_servers_folders_are_processes_and_do_not_import_each_other": (
        "test_rooms_import_only_those_below_them"
    ),
    # The paper's recipes and the queue are entries of reproduce/, each row of which runs dry.
    "test_an_entry_without_its_data_is_left_out": (
        "test_what_lacks_its_data_is_an_error_and_the_rest_runs"
    ),
    "test_bad_queues": "test_faulty_files",
    "test_the_repositorys_queue_knows_the_results_that_are_kept": (
        "test_runs_of_today_find_the_results_that_are_kept"
    ),
    "test_every_row_of_the_tables_has_its_file": "test_every_row_of_the_tables_is_there",
    "test_recipes_have_the_papers_settings": "test_entries_have_the_papers_settings",
    "test_dry_runs_on_the_same_architecture": "test_each_row_runs_on_its_architecture",
    # Those files are no longer generated.
    "test_the_papers_recipes_are_up_to_date": "test_each_file_of_the_folder_is_read",
}


@dataclass(frozen=True)
class Test:
    """A test function. asserts: assert statements, `pytest.raises` and waits for a condition."""

    file: str
    name: str
    marks: frozenset[str]
    asserts: int
    body: tuple[str, ...]

    @property
    def runs_in(self) -> str:
        """The make targets that run it."""
        if "operate" in self.marks:
            return "test-operate"
        if "slow" in self.marks:
            return "test-slow"
        return "test" if "engine" in self.marks else "test, test-quick"


def tests(file: str, source: str) -> Iterator[Test]:
    module = ast.parse(source)
    shared = {
        mark
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        for mark in re.findall(r"mark\.(\w+)", ast.unparse(node.value))
    }
    for node in ast.walk(module):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not node.name.startswith("test_"):
            continue
        own = {m for d in node.decorator_list for m in re.findall(r"mark\.(\w+)", ast.unparse(d))}
        if any(isinstance(d, ast.Name) and d.id == "SLOW" for d in node.decorator_list):
            own.add("slow")
        # Marks of single cases do not move the whole test.
        own -= {"slow"} if _only_cases(node) else set()
        text = "\n".join(ast.unparse(statement) for statement in node.body)
        asserts = sum(isinstance(n, ast.Assert) for n in ast.walk(node)) + sum(
            text.count(word) for word in ("raises(", "until(")
        )
        yield Test(file, node.name, frozenset(shared | own), asserts, structure(node))


def structure(node: ast.AST) -> tuple[str, ...]:
    """Node types and constants of a function in order; docstrings and names do not count."""
    found = []
    for child in ast.walk(node):
        if isinstance(child, ast.Constant):
            words = isinstance(child.value, str) and " " in child.value
            found.append("text" if words else repr(child.value))
        elif not isinstance(child, ast.expr_context):
            found.append(type(child).__name__)
    return tuple(found)


def _only_cases(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    texts = [ast.unparse(decorator) for decorator in node.decorator_list]
    return not any(text in ("SLOW", "pytest.mark.slow") for text in texts)


def of_revision(revision: str) -> list[Test]:
    """Test functions of a commit. Raises subprocess.CalledProcessError if git lacks it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout

    names = git("ls-tree", "-r", "--name-only", revision, "tests").splitlines()
    files = [n for n in names if n.endswith(".py")]
    return [t for f in files for t in tests(f, git("show", f"{revision}:{f}"))]


def of_tree() -> list[Test]:
    files = sorted((ROOT / "tests").rglob("*.py"))
    return [t for f in files for t in tests(str(f.relative_to(ROOT)), f.read_text())]


def successor(old: Test, new: list[Test], taken: set[Test]) -> Test | None:
    """The test that `old` has become: of the same name, else of a similar body."""

    def likeness(other: Test) -> float:
        matcher = difflib.SequenceMatcher(None, old.body, other.body, autojunk=False)
        # The cheap upper bound first: most pairs have little in common.
        return matcher.ratio() if matcher.quick_ratio() >= SIMILAR / 2 else 0.0

    same = [t for t in new if t.name == old.name and t not in taken]
    if same:
        return max(same, key=likeness)
    free = [t for t in new if t not in taken]
    best = max(free, key=likeness, default=None)
    return best if best is not None and likeness(best) >= SIMILAR else None


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the tests of two revisions.")
    parser.add_argument("revision", help="the older revision")
    parser.add_argument("--lost", action="store_true", help="print only what is lost or less")
    options = parser.parse_args()
    before, now = of_revision(options.revision), of_tree()
    kept = {t.name for t in now}
    taken: set[Test] = set()
    lost = 0
    # Names first, so that a renamed test does not take another's place.
    for old in sorted(before, key=lambda t: t.name not in kept):
        decided = SUCCESSORS.get(old.name)
        if decided is not None:
            new = next((t for t in now if t.name == decided), None)
        else:
            new = successor(old, now, taken)
        if new is not None:
            taken.add(new)
        less = new is None or (decided is None and new.asserts < old.asserts)
        lost += less
        if less or not options.lost:
            place = f"{new.file}::{new.name} [{new.runs_in}]" if new else "LOST"
            counts = f"{old.asserts} -> {new.asserts if new else 0}"
            print(f"{old.file}::{old.name} -> {place} ({counts})")
    print(f"{len(before)} tests before, {len(now)} now, {lost} lost or asserting less")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
