"""Settings from YAML and flags."""

from pathlib import Path

import pytest
from bmt_trainer.errors import ConfigError, TrainerError
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.settings import build, read_yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDED = {"model": "m", "dataset": "task:initials", "output": "o.bmt"}


def test_the_defaults_are_the_papers():
    config = build(SftConfig, NEEDED)
    assert (config.learning_rate, config.alpha_start, config.alpha_end) == (5e-4, 1e2, 1e3)
    assert (config.reg_lambda, config.eta, config.seed) == (1e-5, 1 / 2048, 0)
    assert (config.init_mean, config.init_std) == (0.03, 0.01)
    assert (config.steps, config.batch_size, config.calibration_prompts) == (400, 4, 2048)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"stepz": 3}, "did you mean steps"),
        ({"zzzz": 3}, "the settings are model"),
        ({"steps": 0}, "steps: 0 is below 1"),
        ({"steps": 2.5}, "steps: 2.5 is not an integer"),
        ({"steps": True}, "not an integer"),
        ({"steps": "many"}, "not an integer"),
        ({"learning_rate": 0}, "must be above 0"),
        ({"learning_rate": float("nan")}, "nan"),
        ({"learning_rate": None}, "not a number"),
        ({"precision": "fp16"}, "not one of auto, bf16, fp32"),
        ({"resume": "yes"}, "not true or false"),
        ({"model": ["a"]}, "not text"),
        ({"output": 3}, "not a path"),
    ],
)
def test_wrong_settings_are_named(values, says):
    with pytest.raises(ConfigError, match=says) as raised:
        build(SftConfig, {**NEEDED, **values})
    assert isinstance(raised.value, TrainerError)


def test_missing_settings_are_named():
    with pytest.raises(ConfigError, match="dataset, output must be set"):
        build(SftConfig, {"model": "m"})


def test_direct_construction_is_checked_too():
    with pytest.raises(ConfigError, match="alpha_end"):
        SftConfig(model="m", dataset="d", output="o", alpha_end=-1.0)


def test_yaml_numbers_without_a_dot(tmp_path):
    """YAML 1.1 reads 5e-4 as text."""
    path = tmp_path / "c.yaml"
    path.write_text("learning_rate: 5e-4\nsteps: 10\nsystem: null\n")
    config = build(SftConfig, {**NEEDED, **read_yaml(path)})
    assert config.learning_rate == 5e-4
    assert config.system is None


@pytest.mark.parametrize("text", ["- a\n- b\n", "3: x\n", "a: [\n", "just text"])
def test_yaml_that_holds_no_settings(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")


def test_an_empty_file_sets_nothing(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("# all defaults\n")
    assert read_yaml(path) == {}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("**/*.yaml")), ids=lambda p: p.name)
def test_examples_are_valid(path):
    config = build(SftConfig, {**NEEDED, **read_yaml(path)})
    for name in ("learning_rate", "alpha_start", "alpha_end", "reg_lambda", "eta", "seed"):
        assert getattr(config, name) == getattr(build(SftConfig, NEEDED), name)
