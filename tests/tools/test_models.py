"""The survey of architectures: its page is current, and a sample of it still comes out as kept."""

from __future__ import annotations

import json

import pytest
import transformers

from tools.generators import models as page
from tools.models import __main__ as survey
from tools.models.__main__ import OUTCOMES, architectures
from tools.models.trainer import trial

KEPT = json.loads(OUTCOMES.read_text())
# Of each kind of outcome one: own gates, fused ones, a text model of several inputs, experts, dense
# first layers, no gate, another name, and an order that is not known.
SAMPLE = (
    *("olmo2", "phi3", "gemma3", "mistral3", "mixtral", "deepseek_v3", "gpt2", "falcon_h1"),
    "zamba2",
)


def test_the_page_is_written_from_the_outcomes():
    for path, text in page.pages().items():
        assert path.read_text() == text, "run `python tools/generate.py models`"


def test_every_architecture_of_transformers_has_an_outcome():
    if KEPT["versions"]["transformers"] != transformers.__version__:
        pytest.skip("the outcomes are of another version of transformers: run `make models`")
    assert {k: o["causal"] for k, o in KEPT["outcomes"].items()} == architectures()


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_sample_comes_out_as_kept(kind):
    kept = KEPT["outcomes"][kind]
    found = trial(kind)
    assert found == {name: kept[name] for name in found}


@pytest.mark.parametrize(
    ("kind", "says"), [("llama", "try all, without KINDs"), ("nope", "'nope' is no model_type")]
)
def test_outcomes_of_several_versions_are_not_mixed(kind, says, tmp_path, monkeypatch, capsys):
    kept = tmp_path / "outcomes.json"
    kept.write_text(json.dumps({"versions": {"transformers": "1.0"}, "outcomes": {}}))
    before = kept.read_text()
    monkeypatch.setattr(survey, "OUTCOMES", kept)
    monkeypatch.setattr("sys.argv", ["models", kind])
    with pytest.raises(SystemExit):
        survey.main()
    assert says in capsys.readouterr().err
    assert kept.read_text() == before


def test_every_outcome_stands_on_the_page_once():
    text = next(iter(page.pages().values()))
    for kind, outcome in KEPT["outcomes"].items():
        assert text.count(f"`{kind}`") == 1, kind
        if not outcome["trains"]:
            assert outcome["reason"], kind


def test_text_of_others_is_no_markup():
    outcome = {"causal": True, "trains": None, "reason": "a | <b>\n" + "x" * 200, "fused": False}
    text = page.page({"transformers": "5"}, {"k": outcome})
    row = next(line for line in text.splitlines() if line.startswith("| `k` "))
    assert row.count("|") == 3
    assert "<b>" not in row
