"""Digests of what rewards are made of: a resumed run must have the same ones. Imports no torch."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation import answer_parsing, graders
from bmt_trainer.rewards import loading
from bmt_trainer.rewards.specification import JUDGE, Specification, parse
from bmt_trainer.settings import expanded


def digest(text: str) -> str:
    """SHA-256, hexadecimal, of the rewards that a text names: their text and their code.

    Of FILE.py:NAME, the file and the neighbors that it imports, directly or through others; of a
    dotted path, the module's file and the neighbors that it imports, or, if it is installed, its
    version; of a grader, its code; of options that name files, their bytes. Files that a reward
    opens itself are not seen. Raises ConfigError.
    """
    whole = hashlib.sha256()
    for spec in parse(text):
        whole.update(json.dumps([spec.text, *_contents(spec)]).encode())
    return whole.hexdigest()


def _contents(spec: Specification) -> Iterator[str]:
    if spec.name in graders.GRADERS:
        yield from (_of_file(Path(str(m.__file__))) for m in (graders, answer_parsing))
    elif spec.name.startswith(JUDGE):
        yield _of_file(Path(__file__).with_name("judge.py"))
    elif (of_file := loading.split_file(spec.name)) is not None:
        path = of_file[0].resolve()
        yield from _of_code(path, loading.package_root(path))
    elif (dotted := loading.split_dotted(spec.name)) is not None:
        path = _source(dotted[0], spec.text)
        root = loading.package_root(path)
        if root.name in ("site-packages", "dist-packages"):
            yield from (_of_file(path), _version(dotted[0]))
        else:
            yield from _of_code(path, root)
    for value in spec.options.values():
        try:
            if (given := expanded(value)).is_file():
                yield _of_file(given)
        except OSError:  # too long for a name, so no file
            continue


def _source(module: str, text: str) -> Path:
    with loading.on_path(Path.cwd()):
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"reward {text}: {error}") from None
    if spec is None or not spec.origin or not spec.has_location:
        raise ConfigError(f"reward {text}: there is no module {module}")
    return Path(spec.origin).resolve()


def _version(module: str) -> str:
    """The version of an installed package of a module's name; empty if it has another name."""
    try:
        return importlib.metadata.version(module.partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return ""


def _of_file(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"reward: {path} cannot be read ({error.strerror})") from None


def _of_code(path: Path, root: Path) -> list[str]:
    """Path below `root` and digest of a file and of all files below it that it imports."""
    seen: dict[Path, str] = {}
    ahead = [path]
    while ahead:
        file = ahead.pop()
        if file not in seen:
            seen[file] = _of_file(file)
            ahead += _imported(file, root)
    return [f"{file.relative_to(root)} {seen[file]}" for file in sorted(seen)]


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """Files below `root` that a file imports, at any level of it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"reward: {path} is not Python ({error})") from None
    package = path.parent.relative_to(root).parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(root, tuple(alias.name.split(".")))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            yield from _files(root, module)
            for alias in node.names:  # `from package import module`
                yield from _files(root, (*module, alias.name))


def _files(root: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """The files of a module and of the packages around it, as far as they are below `root`."""
    for end in range(1, len(parts) + 1):
        here = root.joinpath(*parts[:end])
        for file in (here / "__init__.py", here.with_name(f"{here.name}.py")):
            if file.is_file():
                yield file.resolve()
