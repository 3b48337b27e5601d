"""Settings that no mask can carry are refused before a run, not when its mask is written."""

from __future__ import annotations

import datetime

import pytest
from bmt_core.config import BASE_CONFIG, arithmetic
from bmt_core.mask import MAX_METADATA, dump_metadata
from bmt_trainer.console import Display
from bmt_trainer.errors import ConfigError
from bmt_trainer.methods import sft
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.methods.guards.metadata import check_metadata


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"system": "a" * MAX_METADATA}, "system: 65,5.. bytes; .* fit"),
        ({"dataset": "d.jsonl + " * 3_000}, "dataset: 60,0.. bytes; .* fit"),
        ({"chat_template_kwargs": {"text": "a" * 30_000}}, "chat_template_kwargs: 60,0.. bytes"),
        ({"system": "\udcff"}, "system: .*cannot have this one .*surrogates"),
        ({"chat_template_kwargs": {"date": datetime.date(2026, 1, 1)}}, "kwargs: .* a date"),
        ({"chat_template_kwargs": {"temperature": float("nan")}}, "kwargs: .*NaN"),
    ],
)
def test_what_a_mask_cannot_carry_is_refused(checkpoint, settings, line):
    with pytest.raises(ConfigError, match=line):
        check_metadata({"steps": 4, **settings}, checkpoint)


def test_what_is_taken_leaves_room_for_the_rest(checkpoint):
    settings = {"system": "a" * 50_000, "dataset": "d.jsonl", "chat_template_kwargs": {"a": [None]}}
    check_metadata(settings, checkpoint)
    known = {"config": settings, BASE_CONFIG: arithmetic(checkpoint), **settings, "system": ""}
    assert len(dump_metadata({**known, "scores": "s" * 4096})) < MAX_METADATA


def test_a_run_ends_before_its_data_are_read(checkpoint, tmp_path):
    config = SftConfig(
        model=str(checkpoint),
        dataset=str(tmp_path / "none.jsonl"),
        output=tmp_path / "x.bmt",
        system="a" * MAX_METADATA,
    )
    with pytest.raises(ConfigError, match="system: "):
        sft.load(config, Display())
