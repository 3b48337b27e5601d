"""Digest of the template that vLLM serves, equal to the one that the trainer writes."""

from __future__ import annotations

import pytest
from bmt_server.settings import NO_TEMPLATE, SettingsError

from tests.support.tiny_model import TEMPLATE, byte_tokenizer

pytest.importorskip("vllm.renderers.chat_utils")
from bmt_server.vllm_integration.chat_template import digest, served_digest
from bmt_trainer.models import load_tokenizer
from bmt_trainer.templates.chat_templates import template_digest

CRLF = TEMPLATE.replace("\n", "\r\n") + "{# Grüße #}"


def saved(folder, template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "template", [TEMPLATE, CRLF, {"default": TEMPLATE, "tool_use": TEMPLATE + "x"}]
)
def test_the_checkpoints_own(tmp_path, template):
    folder = saved(tmp_path, template)
    found = served_digest(None, str(folder))
    assert found == template_digest(load_tokenizer(folder))
    assert len(found) == 64


@pytest.mark.parametrize("template", [TEMPLATE, CRLF])
def test_a_given_file(tmp_path, template):
    folder = saved(tmp_path / "model", TEMPLATE + "{# own #}")
    file = tmp_path / "t.jinja"
    file.write_bytes(template.encode())
    trained = template_digest(load_tokenizer(folder, str(file)))
    assert served_digest(str(file), str(folder)) == trained
    assert trained != template_digest(load_tokenizer(folder))


def test_no_template_and_an_unknown_one(tmp_path):
    folder = saved(tmp_path / "none", None)
    assert served_digest(None, str(folder)) == NO_TEMPLATE
    assert template_digest(load_tokenizer(folder)) is None
    (tmp_path / "empty").mkdir()
    assert served_digest(None, str(tmp_path / "empty")) == ""
    assert digest({"default": TEMPLATE}) == digest(TEMPLATE)


def test_a_file_that_is_missing_is_refused_before_the_engine_starts(tmp_path):
    with pytest.raises(SettingsError, match="chat-template"):
        served_digest(str(tmp_path / "missing.jinja"), str(tmp_path))
