"""Files of a checkpoint: the ones to download from a repository, and the ones that hold weights.

Patterns are those of `fnmatch`, whose `*` also matches `/`. A repository may carry its weights
twice: in the original format next to the one of transformers, or for other frameworks. A second
copy has other tensor names, so it would double the download and change the base fingerprint.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path

#: Files of a repository to download: weights, configuration, tokenizer, chat templates and the
#: code of models and tokenizers that transformers does not have.
DOWNLOADED = (
    *("*.safetensors", "*.json", "*.jinja", "*.py"),
    *("*.txt", "*.model", "*.tiktoken", "tokenizer*"),
)
#: Files that match `DOWNLOADED` and are not needed: second copies of the weights, and weights in
#: folders, which no loader of a causal model reads.
NOT_DOWNLOADED = (
    *("consolidated*", "original/*", "*/*.safetensors", "*/*.safetensors.index.json"),
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx*"),
)
_SECOND_COPY = "consolidated*.safetensors"


def weight_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The *.safetensors of a checkpoint's folder, sorted, without a second copy of the weights.

    Empty for a folder that does not exist. `consolidated*.safetensors` is a second copy only if
    there are other files.
    """
    files = sorted(p for p in Path(folder).glob("*.safetensors") if p.is_file())
    return [p for p in files if not fnmatch(p.name, _SECOND_COPY)] or files


def second_copies(folder: str | os.PathLike[str]) -> list[Path]:
    """The *.safetensors that `weight_files` leaves out."""
    return sorted(set(Path(folder).glob("*.safetensors")) - set(weight_files(folder)))
