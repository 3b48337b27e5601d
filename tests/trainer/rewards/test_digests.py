"""Digests of rewards: what changes them, and what does not."""

from __future__ import annotations

import pytest
from bmt_trainer.errors import ConfigError
from bmt_trainer.rewards.digests import digest


@pytest.fixture
def files(tmp_path):
    texts = {
        "mine.py": "import helpers\nimport json, torch\nfrom pack import deep\n"
        "def f(c, a):\n    from lazy import N\n    return N\ndef g(c, a): return 1\n",
        "helpers.py": "import further\n",
        "further.py": "N = 1\n",
        "lazy.py": "N = 1\n",
        "pack/__init__.py": "",
        "pack/deep.py": "from .inner import N\n",
        "pack/inner.py": "N = 1\n",
        "alone.py": "N = 1\n",
        "rubric.txt": "{completion}",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.found
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mine.py", True),
        ("helpers.py", True),
        ("further.py", True),
        ("lazy.py", True),
        ("pack/__init__.py", True),
        ("pack/deep.py", True),
        ("pack/inner.py", True),
        ("alone.py", False),
        ("rubric.txt", False),
    ],
)
def test_a_file_and_the_neighbors_it_imports(files, name, changes):
    text = f"{files}/mine.py:f"
    before = digest(text)
    assert digest(text) == before
    with (files / name).open("a") as file:
        file.write("# changed\n")
    assert (digest(text) != before) == changes


def test_a_moved_file_has_its_digest_by_its_text_alone(files, monkeypatch):
    assert digest(f"{files}/mine.py:f") != digest(f"{files}/mine.py:g")
    assert digest("words") != digest("words?weight=2")
    assert digest("words") == digest("words")
    assert digest("words + number") != digest("number + words")


def test_dotted_paths_and_installed_ones(files, monkeypatch):
    monkeypatch.chdir(files)
    before = digest("pack.deep.f")
    (files / "pack" / "inner.py").write_text("N = 2\n")
    assert digest("pack.deep.f") != before
    assert len(digest("trl.rewards.think_format_reward")) == 64
    with pytest.raises(ConfigError, match="no module"):
        digest("no_such_module_at_all.f")


def test_files_of_options_count(files):
    text = f"judge:http://127.0.0.1:9?model=m&prompt={files}/rubric.txt"
    before = digest(text)
    (files / "rubric.txt").write_text("Other {completion}")
    assert digest(text) != before


def test_what_cannot_be_read_is_an_error(files):
    with pytest.raises(ConfigError, match="cannot be read"):
        digest(f"{files}/absent.py:f")
    (files / "helpers.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=r"helpers\.py is not Python"):
        digest(f"{files}/mine.py:f")
