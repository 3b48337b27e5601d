"""Local paths, globs and URLs, distinguished by their text. Imports no library of data sets."""

from __future__ import annotations

import difflib
import glob
import re
from pathlib import Path, PurePosixPath

from bmt_trainer.settings import expanded

#: Format of a data file by its extension.
EXTENSIONS = {
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".json": "json",
    ".csv": "csv",
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    ".txt": "txt",
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
}
#: Extensions of compressed files; `streams.COMPRESSIONS` reads them.
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
#: The characters that make a path a pattern.
GLOB = re.compile(r"[*?\[]")


def is_url(name: str) -> bool:
    """True for a name such as s3://bucket/file.jsonl."""
    return re.match(r"[a-z][a-z0-9+.-]*://", name, re.IGNORECASE) is not None


def extensions(path: str) -> tuple[str, str]:
    """The extension that names a file's format, and that of its compression, in lower case."""
    endings = [ending.lower() for ending in PurePosixPath(path).suffixes[-2:]]
    compression = endings.pop() if endings and endings[-1] in COMPRESSED else ""
    return (endings[-1] if endings else ""), compression


def is_data_file(name: str) -> bool:
    """True for a name that ends like a data file."""
    return extensions(name)[0] in EXTENSIONS


def local_paths(name: str) -> list[str] | None:
    """The files of a path or a glob; None if there are none, or for a folder."""
    path = expanded(name)
    if path.is_file():
        return [str(path)]
    if path.exists() or not GLOB.search(name):
        return None
    return sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).is_file()) or None


def missing(name: str) -> str:
    """Explain that there is no file `name`, with the names near it."""
    path = expanded(name)
    if path.exists() and not path.is_file():
        return f"{'a folder' if path.is_dir() else 'a pipe or a device'}, not a file"
    if path.is_symlink():
        return "a link to a file that does not exist"
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        path, folder = folder, folder.parent
    if GLOB.search(name):
        others = glob.glob(str(expanded(name)), recursive=True)
        what = f"no file, but {others[0]}" if others else "nothing"
        return f"no such file: the pattern matches {what}"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    folded = {n.lower(): n for n in sorted(names, reverse=True)}
    near = [folded[n] for n in difflib.get_close_matches(path.name.lower(), folded, 3, 0.5)]
    if not near:
        near = [n for n in sorted(names) if Path(n).stem == path.stem][:3]
    what = "no such file" if path == expanded(name) else f"no such folder {path}"
    return what + (f"; near it: {', '.join(near)}" if near else "")
