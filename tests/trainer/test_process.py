"""Settings of the training process."""

import platform

import datasets
from bmt_trainer.console import hide_library_progress
from bmt_trainer.process import keep_freed_memory
from transformers.utils import logging


def test_memory_is_kept_where_glibc_is():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_bars_are_silent_only_within_the_block():
    before = logging.is_progress_bar_enabled(), datasets.utils.are_progress_bars_disabled()
    with hide_library_progress():
        assert not logging.is_progress_bar_enabled()
        assert datasets.utils.are_progress_bars_disabled()
    after = logging.is_progress_bar_enabled(), datasets.utils.are_progress_bars_disabled()
    assert after == before
