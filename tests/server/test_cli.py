"""Options of `bmt-server`."""

from __future__ import annotations

import pytest
from bmt_server.cli import serve
from bmt_server.cli.main import app
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("flags", "sparsity"),
    [([], 0.05), (["--max-sparsity", "0.2"], 0.2), (["--max-density", "0.2"], 0.2)],
)
def test_the_largest_sparsity_has_a_former_name(monkeypatch, flags, sparsity):
    given = []
    monkeypatch.setattr(
        serve, "run", lambda *arguments: given.append(arguments[-1]["max_sparsity"])
    )
    done = CliRunner().invoke(app, ["serve", "m", *flags])
    assert (done.exit_code, given) == (0, [sparsity]), done.output
    assert "--max-density" not in CliRunner().invoke(app, ["serve", "--help"]).output
