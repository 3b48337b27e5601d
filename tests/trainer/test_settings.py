"""Settings from YAML and flags."""

import json
from pathlib import Path

import pytest
from bmt_trainer.errors import ConfigError, TrainerError
from bmt_trainer.methods.config import GrpoConfig, SftConfig
from bmt_trainer.settings import build, read_yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAINING = [p for p in sorted(EXAMPLES.glob("**/*.yaml")) if p.parent.name != "neighbors"]
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
        ({"num_train_epochs": 3}, "did you mean epochs"),
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
        ({"output": "~no-such-user/o.bmt"}, "no home folder for ~no-such-user"),
        ({"learning_rate": float("inf")}, "learning_rate: inf is not a finite number"),
        ({"eta": 2}, "eta: 2.0 is above 1"),
        ({"reg_lambda": 1e300}, "reg_lambda: 1e\\+300 is above 3.4e\\+38"),
        ({"steps": 10**30}, "steps: 1000000000000000000000000000000 is above"),
        ({"seed": 2**32}, "seed: 4294967296 is above 4294967295"),
        ({"chat_template_kwargs": '{"a": 1, "a": 2}'}, "a key is given twice"),
        ({"chat_template_kwargs": '{"a": NaN}'}, "NaN is no JSON value"),
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


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.name)
def test_examples_are_valid(path):
    config = build(SftConfig, {**NEEDED, **read_yaml(path)})
    for name in ("learning_rate", "alpha_start", "alpha_end", "reg_lambda", "eta", "seed"):
        assert getattr(config, name) == getattr(build(SftConfig, NEEDED), name)


def settings(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return build(SftConfig, {**NEEDED, **read_yaml(path)})


@pytest.mark.found
@pytest.mark.parametrize("value", ["off", "on", "auto"])
def test_choices_are_what_is_written(tmp_path, value):
    """YAML 1.1 reads off and on as booleans."""
    assert settings(tmp_path, f"lean: {value}\n").lean == value
    path = tmp_path / "c.yaml"
    path.write_text("live_set: on\n")
    assert build(GrpoConfig, {**NEEDED, **read_yaml(path)}).live_set == "on"


@pytest.mark.found
@pytest.mark.parametrize(
    "text",
    ["off", "no", "yes", "y", "1.0", "1.10", "007", "1e3", "0x10", "2024-01-01", "12:30", "true"]
    + ["1_000", "+1", ".5", "=", "2024-01-01 10:00:00"],
)
def test_text_is_what_is_written(tmp_path, text):
    made = settings(tmp_path, f"system: {text}\ndataset: {text}\noutput: {text}\n")
    assert (made.system, made.dataset, str(made.output)) == (text, text, text)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("5e-4", "learning_rate", 5e-4),
        ("1E-3", "learning_rate", 1e-3),
        (".5", "learning_rate", 0.5),
        ("1", "learning_rate", 1.0),
        ("'0.5'", "learning_rate", 0.5),
        ("010", "steps", 10),
        ("0x10", "steps", 16),
        ("1e2", "steps", 100),
        ("true", "resume", True),
        ("False", "resume", False),
        ("null", "system", None),
        ("~", "system", None),
        ("", "system", None),
        ("'null'", "system", "null"),
        ("'off'", "lean", "off"),
        ('"a\\nb"', "system", "a\nb"),
    ],
)
def test_values_by_the_settings_type(tmp_path, text, name, value):
    found = getattr(settings(tmp_path, f"{name}: {text}\n"), name)
    assert found == value
    assert type(found) in (type(value), type(None))


@pytest.mark.found
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps: 1\nlean: off\nsteps: 2\n", "'steps' is set twice, in lines 1 and 3"),
        ("{a: 1, a: 2}", "'a' is set twice, in lines 1 and 1"),
        ("sweep:\n  eta: [1]\n  eta: [2]\n", "'eta' is set twice, in lines 2 and 3"),
    ],
)
def test_a_setting_given_twice_is_an_error(tmp_path, text, says):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"c\\.yaml cannot be read .*{says}"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resume: yes", "'yes' is not true or false"),
        ("resume: 1", "1 is not true or false"),
        ("steps: off", "'off' is not an integer"),
        ("steps: 1.5", "1.5 is not an integer"),
        ("steps: 2024-01-01", "is not an integer"),
        ("learning_rate: .nan", "nan"),
        ("steps: .inf", "inf"),
        ("lean: maybe", "is not one of"),
        ("model: [a]", "not text"),
        ("dataset: {a: b}", "dataset"),
        ("dataset: []", "list of texts"),
        ("dataset: [[a]]", "list of texts"),
        ("? [a]\n: b", "cannot be read"),
        ("a: !!python/object:os.system x", "cannot be read"),
        ("a: *b", "cannot be read"),
        ("resume: !!bool yes", "'yes' is neither true nor false"),
        ("model: !!timestamp x", "cannot be read"),
        ("model: a\0b", "cannot be read"),
    ],
)
def test_wrong_values_in_a_file(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says) as raised:
        settings(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_a_list_of_data_sets_is_a_mixture(tmp_path):
    made = settings(tmp_path, "dataset:\n- a.jsonl?weight=3\n- org/b?weight=1\n- 1.10\n")
    assert made.dataset == "a.jsonl?weight=3 + org/b?weight=1 + 1.10"
    assert settings(tmp_path, "dataset: [a.jsonl]\n").dataset == "a.jsonl"


def test_files_with_a_byte_order_mark_and_merged_anchors(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfsteps: 3\n")
    assert read_yaml(path) == {"steps": 3}
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_yaml(path)["b"] == {"x": 1, "y": 3}


def test_numbers_of_a_file_are_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: [1, 2.5, 1e-3, -.inf]\nb: {c: 0o17}\n")
    values = read_yaml(path)
    assert values == {"a": [1, 2.5, 1e-3, float("-inf")], "b": {"c": 15}}
    assert json.dumps(values["a"][:3]) == "[1, 2.5, 0.001]"
