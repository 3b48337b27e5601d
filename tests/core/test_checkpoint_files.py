"""Files of a repository: the ones that are downloaded, and the ones that hold the weights."""

from __future__ import annotations

from pathlib import Path

import bmt_core
import bmt_server.vllm_integration.checkpoint
import bmt_trainer.models
import numpy as np
import pytest
from bmt_core.checkpoint_files import DOWNLOADED, NOT_DOWNLOADED, second_copies, weight_files
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import save_file

GATE = "model.layers.0.mlp.gate_proj.weight"
# Repositories of several publishers: needed files, and files that only cost time.
REPOSITORIES = {
    "transformers 5": (
        ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"],
        ["README.md", "pytorch_model.bin", "onnx/model.onnx", "onnx/model.onnx_data"],
    ),
    "several templates": (
        ["chat_template.jinja", "additional_chat_templates/tool_use.jinja", "model.safetensors"],
        ["rust_model.ot", "tf_model.h5", "flax_model.msgpack"],
    ),
    "sharded twice": (
        [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            *("params.json", "tokenizer.model.v3", "tekken.json"),
        ],
        ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors"],
    ),
    "original folder": (
        ["model.safetensors", "generation_config.json", "special_tokens_map.json"],
        [
            *("original/consolidated.00.pth", "original/params.json", "original/tokenizer.model"),
            *("original/model.safetensors", "metal/model.safetensors", "metal/model.bin"),
        ],
    ),
    "code and vocabulary": (
        ["modeling_x.py", "configuration_x.py", "tokenization_x.py", "qwen.tiktoken", "merges.txt"],
        ["pytorch_model-00001-of-00002.bin", "model.gguf", "model.pt", "training.ckpt"],
    ),
}


@pytest.mark.found
@pytest.mark.parametrize("repository", REPOSITORIES)
@pytest.mark.parametrize("package", [bmt_trainer.models, bmt_server.vllm_integration.checkpoint])
def test_trainer_and_server_download_the_same_files(monkeypatch, tmp_path, package, repository):
    """Templates and code in files of their own arrive; a second copy of the weights does not."""
    needed, unneeded = REPOSITORIES[repository]
    asked = {}

    def download(model, **options):
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr(package, "snapshot_download", download)
    package.checkpoint_folder("someone/model")
    patterns = {k: asked.get(k) for k in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(needed + unneeded, **patterns)) == needed
    assert patterns == {"allow_patterns": [*DOWNLOADED], "ignore_patterns": [*NOT_DOWNLOADED]}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save_file({GATE: np.ones((4, 3), np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.found
@pytest.mark.parametrize("name", ["consolidated.safetensors", "consolidated-00001.safetensors"])
def test_a_second_copy_of_the_weights_is_not_part_of_the_base(checkpoint, name):
    before = bmt_core.fingerprint(checkpoint)
    save_file({"layers.0.feed_forward.w1.weight": np.ones((4, 3), np.float32)}, checkpoint / name)
    assert bmt_core.fingerprint(checkpoint) == before
    assert bmt_core.geometry(checkpoint) == {GATE: (4, 3)}
    assert [p.name for p in weight_files(checkpoint)] == ["model.safetensors"]
    assert [p.name for p in second_copies(checkpoint)] == [name]


def test_weights_in_one_copy_of_that_name_are_the_base(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "consolidated.safetensors")
    assert bmt_core.geometry(checkpoint) == {GATE: (4, 3)}
    assert second_copies(checkpoint) == []


def test_no_folder_has_no_weights(tmp_path):
    assert weight_files(tmp_path / "none") == []
