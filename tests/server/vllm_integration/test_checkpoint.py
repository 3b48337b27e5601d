"""The checkpoint that vLLM loads is the one that the fingerprint covers."""

from __future__ import annotations

import pytest
from bmt_server.offline import masked_llm
from bmt_server.settings import SettingsError
from bmt_server.vllm_integration.checkpoint import (
    ModelNotFoundError,
    checkpoint_folder,
    load_format,
)

MISSING = ["/no/such/folder", "not a name/at/all", "no/such-model"]


@pytest.mark.found
@pytest.mark.parametrize("model", MISSING)
def test_a_model_that_does_not_exist_is_named(monkeypatch, model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=f"(?s){model}.*name the folder"):
        masked_llm(model)
    with pytest.raises(SettingsError, match="revision 'r1'"):
        checkpoint_folder(model, "r1")


def test_vllm_loads_no_second_copy_of_the_weights(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert load_format(str(tmp_path), "auto") == "auto"
    (tmp_path / "consolidated.safetensors").touch()
    assert load_format(str(tmp_path), "auto") == "safetensors"
    assert load_format(str(tmp_path), "runai_streamer") == "runai_streamer"
