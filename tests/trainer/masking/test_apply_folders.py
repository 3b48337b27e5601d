"""Folders of masked checkpoints: where they may not be, what they hold, whole or absent."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import bmt_core
import numpy as np
import pytest
import torch
from bmt_core.config import BASE_CONFIG, arithmetic
from bmt_trainer.cli import main
from bmt_trainer.errors import ModelError, OutputError
from bmt_trainer.evaluation.backends import by_transformers
from bmt_trainer.masking import apply as apply_module
from bmt_trainer.masking import new_folder as folder_module
from bmt_trainer.masking.apply import write_checkpoint
from safetensors.torch import load_file, save_file

from tests.support.scenarios.mounts import mounted, small_disk


@pytest.fixture
def model(checkpoint, tmp_path):
    """A copy of the checkpoint, which a test may write to."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


@pytest.fixture
def mask(checkpoint):
    name, shape = next(iter(bmt_core.geometry(checkpoint).items()))
    tensor = bmt_core.TensorMask(name, shape, np.array([0, 5, 2047], np.uint32))
    return bmt_core.Mask(bmt_core.Base("tiny", bmt_core.fingerprint(checkpoint)), (tensor,))


def tree(folder):
    """Every path below a folder, with its content or the target of its link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kept = os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        found[str(path.relative_to(folder))] = kept
    return found


@contextmanager
def unchanged(folder):
    before = tree(folder)
    yield
    assert tree(folder) == before


def ways_in(tmp_path, model):
    """Outputs that are the model's folder, or in it, by many ways."""
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "far").mkdir()
    (tmp_path / "far/up").symlink_to("../model/sub")
    (model / "sub").mkdir()
    (model / "own").symlink_to(".")
    (tmp_path / "empty").mkdir()
    (model / "elsewhere").symlink_to(tmp_path / "empty")
    return [
        model,
        model / "masked",
        model / "a/b/masked",
        model / "sub",
        model / "sub/../masked",
        tmp_path / "link",
        tmp_path / "link/masked",
        tmp_path / "far/up",
        tmp_path / "far/up/masked",
        tmp_path / "far/up/../masked",
        model / "own/own/masked",
        model / "elsewhere/masked",
        model / "config.json/masked",
        Path(os.path.relpath(model / "masked")),
    ]


@pytest.mark.found
def test_an_output_in_the_model_is_refused_by_every_way_there(mask, model, tmp_path):
    ways = ways_in(tmp_path, model)
    with unchanged(tmp_path):
        for way in ways:
            with pytest.raises(OutputError, match="is the model's folder"):
                write_checkpoint(mask, model, way)
            with pytest.raises(OutputError, match="is the model's folder"):
                write_checkpoint(mask, tmp_path / "link", way)


@pytest.mark.found
def test_an_output_in_the_model_is_refused_through_bind_mounts(mask, model, tmp_path):
    (model / "sub").mkdir()
    with mounted(tmp_path / "whole", "--bind", str(model)) as whole:  # noqa: SIM117
        with mounted(tmp_path / "part", "--bind", str(model / "sub")) as part:
            for way in (whole, whole / "masked", part, part / "masked"):
                with pytest.raises(OutputError, match="is the model's folder"):
                    write_checkpoint(mask, model, way)
    assert not list((model / "sub").iterdir())


@pytest.mark.found
def test_the_command_refuses_an_output_in_the_model_in_one_line(
    mask, model, tmp_path, capsys, monkeypatch
):
    bmt_core.save(mask, tmp_path / "m.bmt")
    arguments = ["--model", str(model), "--output", str(model / "masked")]
    monkeypatch.setattr("sys.argv", ["bmt-train", "apply", str(tmp_path / "m.bmt"), *arguments])
    with unchanged(tmp_path), pytest.raises(SystemExit):
        main.main()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("bmt-train: ")
    assert len(line) < 400


def test_other_outputs_that_cannot_be_are_refused(mask, model, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    full = tmp_path / "full"
    full.mkdir()
    (full / "kept").write_text("")
    for name, reason in [
        ("file", "is a file"),
        ("nowhere", "link to nothing"),
        ("loop", "link to nothing"),
        ("full", "not empty"),
        (".", "holds the model"),
        ("file/out", "cannot be"),
        ("x" * 300, "cannot be"),
    ]:
        with unchanged(tmp_path), pytest.raises(OutputError, match=reason):
            write_checkpoint(mask, model, tmp_path / name)


def test_a_mount_point_is_refused_before_anything_is_written(mask, model, tmp_path):
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        with pytest.raises(OutputError, match="mount point"):
            write_checkpoint(mask, model, disk)
        write_checkpoint(mask, model, disk / "out")


def test_an_empty_folder_is_filled_through_a_link(mask, model, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    write_checkpoint(mask, model, tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert {p.name for p in (tmp_path / "real").iterdir()} == {p.name for p in model.iterdir()}


@pytest.mark.found
def test_a_link_to_itself_and_what_is_no_checkpoint_is_left_out(mask, model, tmp_path):
    kept = {p.name for p in model.iterdir()}
    (model / "self").symlink_to(".")
    (model / "deep").symlink_to(tmp_path)
    for folder in ("checkpoint-5", "original", ".git", "runs", ".cache"):
        (model / folder).mkdir()
        (model / folder / "model.safetensors").write_bytes(
            (model / "model.safetensors").read_bytes()
        )
    remains = [
        *("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "tf_model.h5"),
        *(
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "consolidated.safetensors.index.json",
        ),
        *(
            "model.gguf",
            "trainer_state.json",
            "adapter_config.json",
            "train_results.json",
            ".hidden",
        ),
    ]
    for name in remains:
        (model / name).write_text("{}")
    extra = {"layers.0.w1": torch.ones(2, 2)}
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "optimizer.safetensors"):
        save_file({f"{name}.{key}": value for key, value in extra.items()}, model / name)
    own = {
        *("generation_config.json", "chat_template.jinja", "processor_config.json", "LICENSE"),
        *("modeling_tiny.py", "README.md", "NOTICE.txt", "tokenizer.model", "merges.txt"),
        *("preprocessor_config.json", "additional_chat_templates/rag.jinja", "USE_POLICY.md"),
    }
    (model / "additional_chat_templates").mkdir()
    for name in own:
        (model / name).write_text("{}")
    base = bmt_core.Base("tiny", bmt_core.fingerprint(model))
    lines = []
    with unchanged(model):
        write_checkpoint(
            bmt_core.Mask(base, mask.tensors), model, tmp_path / "out", say=lines.append
        )
    found = {
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert found == kept | own
    [line] = lines
    assert line.startswith("left out: adapter_config.json, adapter_model.safetensors, ")
    assert "consolidated.safetensors, " in line
    assert "more" in line


@pytest.mark.found
def test_the_index_names_the_weights(mask, model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: shards[at % 2] for at, name in enumerate(tensors)}
    for shard in shards:
        save_file({n: t for n, t in tensors.items() if where[n] == shard}, model / shard)
    save_file({"mtp.weight": torch.ones(3)}, model / "mtp.safetensors")
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    mask = bmt_core.Mask(bmt_core.Base("t", bmt_core.fingerprint(model)), mask.tensors)
    lines = []
    out = write_checkpoint(mask, model, tmp_path / "out", say=lines.append)
    assert sorted(p.name for p in out.glob("*.safetensors")) == shards
    assert lines == [line for line in lines if "mtp.safetensors" in line]
    for wrong, reason in [
        ("../else.safetensors", "another folder"),
        ("/tmp/else.safetensors", "another folder"),
        ("sub/else.safetensors", "another folder"),
        ("gone.safetensors", "lacks gone"),
    ]:
        index.write_text(json.dumps({"weight_map": {**where, "more": wrong}}))
        with unchanged(tmp_path), pytest.raises(ModelError, match=reason):
            write_checkpoint(mask, model, tmp_path / "out2")


@pytest.mark.found
def test_another_arithmetic_than_the_trainings_is_one_line(mask, model, tmp_path, capsys):
    """The fingerprint is of the tensors alone, so the mask still applies."""
    metadata = {BASE_CONFIG: arithmetic(model)}
    mask = bmt_core.Mask(mask.base, mask.tensors, metadata)
    lines = []
    write_checkpoint(mask, model, tmp_path / "same", say=lines.append)
    assert lines == []
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    write_checkpoint(mask, model, tmp_path / "out", say=lines.append)
    [line] = lines
    assert "rms_norm_eps 1e-06 (here 0.1)" in line
    bmt_core.save(mask, tmp_path / "m.bmt")
    by_transformers(str(model), tmp_path / "m.bmt", batch_size=1, device="cpu")
    assert line in capsys.readouterr().err


def test_a_part_that_is_a_link_to_nothing_is_refused(mask, model, tmp_path):
    (model / "merges.txt").symlink_to("gone")
    with unchanged(tmp_path), pytest.raises(ModelError, match=r"merges.txt is a link to nothing"):
        write_checkpoint(mask, model, tmp_path / "out")


@pytest.mark.found
def test_a_disk_without_room_is_refused_beforehand(mask, model, tmp_path):
    (model / "LICENSE").write_bytes(bytes(1 << 20))
    with small_disk(tmp_path / "disk", 1 << 19) as disk:
        with pytest.raises(OutputError, match=r"takes .* free; make room"):
            write_checkpoint(mask, model, disk / "a/b/out")
        assert not list(disk.iterdir())


@pytest.mark.found
def test_a_disk_that_fills_up_leaves_nothing(mask, model, tmp_path, monkeypatch):
    """As where a quota, or another process, takes the room that was free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1 << 40))
    (model / "LICENSE").write_bytes(bytes(1 << 20))
    with small_disk(tmp_path / "disk", 1 << 19) as disk:
        with pytest.raises(OutputError, match=r"No space left on device.*nothing is left"):
            write_checkpoint(mask, model, disk / "a/b/out")
        assert not list(disk.iterdir())


@pytest.mark.found
def test_a_file_above_the_process_limit_leaves_nothing(mask, model, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with unchanged(tmp_path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, hard))
        try:
            with pytest.raises(OutputError, match="File too large"):
                write_checkpoint(mask, model, tmp_path / "a/out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.found
def test_of_two_at_once_one_writes_and_the_other_is_refused(mask, model, tmp_path, monkeypatch):
    begun, go_on, copy = threading.Event(), threading.Event(), apply_module._copy

    def slow(*arguments):
        begun.set()
        assert go_on.wait(10)
        copy(*arguments)

    monkeypatch.setattr(apply_module, "_copy", slow)
    first = threading.Thread(target=write_checkpoint, args=(mask, model, tmp_path / "out"))
    first.start()
    assert begun.wait(10)
    with pytest.raises(OutputError, match="being written by another process"):
        write_checkpoint(mask, model, tmp_path / "out")
    go_on.set()
    first.join()
    assert {p.name for p in tmp_path.iterdir()} == {"model", "out"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in model.iterdir()}
    with pytest.raises(OutputError, match="not empty"):
        write_checkpoint(mask, model, tmp_path / "out")


def test_a_folder_that_another_program_fills_meanwhile_is_kept(mask, model, tmp_path, monkeypatch):
    copy = apply_module._copy

    def meddled(*arguments):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/theirs").write_text("x")
        copy(*arguments)

    monkeypatch.setattr(apply_module, "_copy", meddled)
    with pytest.raises(OutputError, match="another process meanwhile"):
        write_checkpoint(mask, model, tmp_path / "out")
    assert tree(tmp_path / "out") == {"theirs": b"x"}
    assert {p.name for p in tmp_path.iterdir()} == {"model", "out"}


def killed(mask, model, out):
    folder_module._rename = lambda *_: os._exit(9)
    write_checkpoint(mask, model, out)


@pytest.mark.found
def test_a_killed_one_leaves_no_checkpoint_and_the_next_one_none_of_its_files(
    mask, model, tmp_path
):
    child = multiprocessing.get_context("fork").Process(
        target=killed, args=(mask, model, tmp_path / "out")
    )
    child.start()
    child.join()
    assert child.exitcode == 9
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 2
    write_checkpoint(mask, model, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"model", "out"}


def test_an_interrupted_one_leaves_nothing(mask, model, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(apply_module, "sync", stop)
    with unchanged(tmp_path), pytest.raises(KeyboardInterrupt):
        write_checkpoint(mask, model, tmp_path / "a/out")
