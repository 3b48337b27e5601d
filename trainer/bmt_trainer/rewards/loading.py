"""Python objects by name: `FILE.py:NAME`, whose file may import its neighbors, or a dotted path."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from bmt_trainer.errors import ConfigError
from bmt_trainer.settings import expanded


def split_file(name: str) -> tuple[Path, str] | None:
    """Path and name of `FILE.py:NAME`; None for another form."""
    path, colon, attribute = name.rpartition(":")
    if not (colon and path.endswith(".py")):
        return None
    return expanded(path), attribute


def split_dotted(name: str) -> tuple[str, str] | None:
    """Module and name of `package.module:NAME` or `package.module.NAME`; None for another form."""
    module, colon, attribute = name.rpartition(":")
    if not colon:
        module, _, attribute = name.rpartition(".")
    parts = [*module.split("."), *attribute.split(".")]
    return (module, attribute) if module and all(p.isidentifier() for p in parts) else None


def load(name: str) -> tuple[Any, Path]:
    """The object that `name` names, and the folder from which its module imports neighbors.

    Raises ConfigError.
    """
    if (of_file := split_file(name)) is not None:
        path, attribute = of_file
        if not path.is_file():
            raise ConfigError(f"reward {name}: there is no file {path}")
        folder = package_root(path)
        module = _imported(name, folder, lambda: _file_module(name, path.resolve(), folder))
    elif (dotted := split_dotted(name)) is not None:
        # As `python -m` does; the script of a console command looks in its own folder alone.
        (module_name, attribute), folder = dotted, Path.cwd()
        module = _imported(name, folder, lambda: importlib.import_module(module_name), own=False)
    else:
        raise ConfigError(f"reward: {name!r} is not FILE.py:FUNCTION, nor a dotted path")
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            there = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            listed = f"; it has {', '.join(sorted(there)[:12])}" if there else ""
            raise ConfigError(f"reward {name}: the module has no {attribute!r}{listed}")
        found = getattr(found, part)
    return found, folder


def package_root(path: Path) -> Path:
    """The folder to import a file from: the one above its outermost package, or its own."""
    folder = path.resolve().parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


@contextmanager
def neighbors_of(folder: Path) -> Iterator[None]:
    """Import from `folder` first in the block, without modules of the same names of other folders.

    Two reward files, each with a `helpers.py` of its own, get their own; modules of installed
    packages stay as they are.
    """
    neighbors = _names_in(folder)
    hidden = {
        name: module
        for name, module in sys.modules.copy().items()
        if name.partition(".")[0] in neighbors and _is_of_users(module, folder)
    }
    for name in hidden:
        del sys.modules[name]
    try:
        with on_path(folder):
            yield
    finally:
        sys.modules.update(hidden)


@contextmanager
def on_path(folder: Path) -> Iterator[None]:
    """Import from `folder` too in the block, and from there first."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _names_in(folder: Path) -> set[str]:
    """Names of the modules and packages of a folder."""
    files = {p.stem for p in folder.glob("*.py")}
    return files | {p.parent.name for p in folder.glob("*/__init__.py")}


def _is_of_users(module: ModuleType, folder: Path) -> bool:
    """A plain file of another folder: not of an installed package, of Python's library or ours."""
    file = getattr(module, "__file__", None)
    if not file or folder in Path(file).resolve().parents:
        return False
    installed = {Path(p).resolve() for p in sys.path if p.endswith("site-packages")}
    library = Path(os.__file__).resolve().parent
    parents = set(Path(file).resolve().parents)
    ours = {"bmt_trainer", "bmt_core", "bmt_client", "bmt_server", "__main__"}
    return not parents & {*installed, library} and module.__name__.partition(".")[0] not in ours


def _file_module(text: str, path: Path, folder: Path) -> ModuleType:
    relative = path.with_suffix("").relative_to(folder)
    if len(relative.parts) > 1:  # a member of a package, which may import relatively
        module = importlib.import_module(".".join(relative.parts))
    else:
        module = _plain_file(path)
    _check_neighbors(text, path, folder)
    return module


def _plain_file(path: Path) -> ModuleType:
    # A name of its own: a file called json.py must not become Python's json. By its content too,
    # so that a file that has changed is loaded again, and two functions of a file share its state.
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    name = f"bmt_reward_{digest}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported(
    name: str, folder: Path, load: Callable[[], ModuleType], *, own: bool = True
) -> ModuleType:
    importlib.invalidate_caches()  # for files that were written a moment ago
    try:
        with (neighbors_of if own else on_path)(folder):
            module: ModuleType = load()
    except ConfigError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a user's module raises
        raise ConfigError(f"reward {name}: cannot be loaded ({described(error)})") from error
    return module


def _check_neighbors(name: str, path: Path, folder: Path) -> None:
    """Refuse a neighbor whose name an installed module has: Python has taken that one."""
    for top in sorted(imported_names(path) & _names_in(folder)):
        module = sys.modules.get(top)
        if module is None:  # imported later, inside of a function
            continue
        file = getattr(module, "__file__", None)
        if not (file and folder in Path(file).resolve().parents):
            raise ConfigError(
                f"reward {name}: it imports {top!r}, which is a file next to it and another module "
                f"({file or 'built in'}); rename the file"
            )


def imported_names(path: Path) -> set[str]:
    """First parts of the modules that a file imports absolutely."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


def described(error: BaseException) -> str:
    """An exception in one line, with the last place of a file in its trace."""
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).resolve().parents[1]
    own = [f for f in frames if here not in Path(f.filename).parents and f.filename[:1] != "<"]
    place = f", {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception's own __str__
        text = ""
    return f"{type(error).__name__}{text and ': '}{text[:200]}{place}"
