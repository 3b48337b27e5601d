"""Commands inspect and diff: output for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import bmt_core
import numpy as np
import pytest
from bmt_client.cli import app
from typer.testing import CliRunner

from tests.support.http.fake_server import KEY
from tests.support.masks import BASE, make_mask

GOLDEN = Path(__file__).parent / "golden"


def positions(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint32)


def tiny(*gates: tuple[int, ...], **metadata) -> bmt_core.Mask:
    """Mask of 4 × 8 tensors with zeros at the given positions."""
    return bmt_core.Mask(
        base=BASE,
        tensors=tuple(
            bmt_core.TensorMask(
                name=f"model.layers.{i}.mlp.gate_proj.weight", shape=(4, 8), positions=positions(*p)
            )
            for i, p in enumerate(gates)
        ),
        metadata=metadata,
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The commands need no server address.
    monkeypatch.setenv("BMT_URL", "not an address")

    def call(*args, exit_code=0):
        found = CliRunner().invoke(app, list(args))
        assert found.exit_code == exit_code, (found.output, found.exception)
        return found

    return call


def test_inspect_json_is_golden(run, tmp_path):
    mask = tiny((0, 3, 31), (7,), method="sft", eval={"accuracy": 0.9375, "examples": 400})
    bmt_core.save(mask, tmp_path / "math.bmt")
    found = json.loads(run("inspect", "math.bmt", "--json").stdout)
    # These depend on the compressor; the format's own tests pin them.
    data = (tmp_path / "math.bmt").read_bytes()
    assert found["data"].pop("bytes") == len(data)
    assert found["data"].pop("file_digest") == bmt_core.file_digest(data)
    assert found["data"].pop("digest") == mask.digest
    assert found == json.loads((GOLDEN / "inspect.json").read_text())


def test_inspect_for_people(run, tmp_path):
    bmt_core.save(make_mask(1, eval={"accuracy": 0.5}), tmp_path / "math.bmt")
    out = run("inspect", "math.bmt", "--layers").stdout
    lines = [line.split() for line in out.splitlines()]
    assert ["zeros", "80", "of", "12,288", "(0.651", "%)"] in lines
    assert ["eval.accuracy", "0.5"] in lines
    assert ["model.layers.1.mlp.gate_proj.weight", "64x96", "40", "0.651", "%"] in lines
    assert "x the entropy bound" in out


def test_inspect_refuses_invalid_files(run, tmp_path):
    (tmp_path / "bad.bmt").write_bytes(b"PK\x03\x04" + bytes(100))
    error = json.loads(run("inspect", "bad.bmt", "--json", exit_code=6).stdout)["error"]
    assert error["type"] == "Invalid"
    assert error["code"] == "bad_magic"


def test_diff(run, tmp_path):
    bmt_core.save(tiny((0, 1, 2, 3), (5,)), tmp_path / "a.bmt")
    bmt_core.save(tiny((2, 3, 4), (5,)), tmp_path / "b.bmt")
    found = json.loads(run("diff", "a.bmt", "b.bmt", "--json").stdout)["data"]
    assert (found["only_a"], found["only_b"], found["both"]) == (2, 1, 3)
    assert found["jaccard"] == pytest.approx(3 / 6)
    assert found["tensors"]["model.layers.0.mlp.gate_proj.weight"]["both"] == 2
    lines = [line.split() for line in run("diff", "a.bmt", "b.bmt", "--layers").stdout.splitlines()]
    assert ["only", "A", "2", "(33.3", "%", "of", "their", "union)"] in lines
    assert ["Jaccard", "0.5000"] in lines
    assert ["model.layers.1.mlp.gate_proj.weight", "0", "0", "1", "1.0000"] in lines


def test_diff_of_other_bases_is_refused(run, tmp_path):
    other = bmt_core.Mask(
        base=bmt_core.Base(model_id="other", fingerprint="cd" * 32),
        tensors=tiny((1,)).tensors,
        metadata={},
    )
    bmt_core.save(tiny((1,)), tmp_path / "a.bmt")
    bmt_core.save(other, tmp_path / "b.bmt")
    assert "error:" in run("diff", "a.bmt", "b.bmt", exit_code=6).stderr


def test_diff_of_a_file_and_a_ref(run, tmp_path, server, monkeypatch):
    monkeypatch.setenv("BMT_URL", server.url)
    monkeypatch.setenv("BMT_API_KEY", KEY)
    bmt_core.save(tiny((1, 2)), tmp_path / "math.bmt")
    run("upload", "math.bmt")
    found = json.loads(run("diff", "math.bmt", "math:latest", "--json").stdout)["data"]
    assert (found["both"], found["jaccard"]) == (2, 1.0)
