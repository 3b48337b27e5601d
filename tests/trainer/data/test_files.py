"""Rows of data files: every format, exact values, locations, and files that cannot be read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard
from bmt_trainer.data.rows import files, places
from bmt_trainer.data.sources import load
from bmt_trainer.errors import DataError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(6)]
# Characters that some readers of text take for the end of a line.
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


def gz(data: bytes) -> bytes:
    """Compressed data without the time, so that the tests' names are the same in each run."""
    return gzip.compress(data, mtime=0)


def lines(rows=ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows=ROWS) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def pairs(name: object) -> list[tuple[str, str]]:
    split = load(str(name), heldout=0, train=10**6)
    return sorted((e.messages[-1]["content"], e.answer) for e in split.train)


def rows_of(path: Path) -> list:
    return [row for _, row in files.of_file(path)]


EXPECTED = [(row["prompt"], row["completion"]) for row in ROWS]
PARQUET = pa.BufferOutputStream()
pq.write_table(pa.Table.from_pylist(ROWS), PARQUET)
ARROW = pa.BufferOutputStream()
with pa.ipc.new_stream(ARROW, pa.Table.from_pylist(ROWS).schema) as stream:
    stream.write_table(pa.Table.from_pylist(ROWS))
FEATHER = pa.BufferOutputStream()
pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), FEATHER)


@pytest.mark.found
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.jsonl", lines()),
        ("x.JSONL", lines()),
        ("x.ndjson", lines()),
        ("x.y.jsonl", lines()),
        ("bom.jsonl", b"\xef\xbb\xbf" + lines()),
        ("crlf.jsonl", lines().replace(b"\n", b"\r\n")),
        ("x.json", json.dumps(ROWS).encode()),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).encode()),
        ("data.json", json.dumps({"version": 2, "tags": ["a"], "data": ROWS}).encode()),
        ("lines.json", lines()),
        ("x.csv", table()),
        ("bom.Csv", b"\xef\xbb\xbf" + table()),
        ("crlf.csv", table().replace(b"\n", b"\r\n")),
        ("x.tsv", table().replace(b",", b"\t")),
        ("x.parquet", PARQUET.getvalue().to_pybytes()),
        ("x.arrow", ARROW.getvalue().to_pybytes()),
        ("x.feather", FEATHER.getvalue().to_pybytes()),
        ("x.jsonl.gz", gz(lines())),
        ("x.JSONL.GZ", gz(lines())),
        ("two.jsonl.gz", gz(lines(ROWS[:2])) + gz(lines(ROWS[2:]))),
        ("x.csv.zst", zstandard.compress(table())),
        (
            "two.jsonl.zst",
            zstandard.compress(lines(ROWS[:2])) + zstandard.compress(lines(ROWS[2:])),
        ),
        ("x.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
        ("x.jsonl.xz", lzma.compress(lines())),
        ("x.parquet.gz", gz(PARQUET.getvalue().to_pybytes())),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert pairs(tmp_path / name) == EXPECTED


def test_text_files_have_a_row_a_line(tmp_path):
    (tmp_path / "x.txt").write_text("one \n\n  two\u2028more\r\nthree")
    found = [row for _, row in files.of_file(tmp_path / "x.txt")]
    assert found == [{"text": t} for t in ("one ", "  two\u2028more", "three")]


@pytest.mark.found
def test_globs_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "d"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.jsonl").write_bytes(lines(ROWS[:2]))
    (folder / "two.csv").write_bytes(table(ROWS[2:4]))
    (folder / "deep" / "three.jsonl.gz").write_bytes(gz(lines(ROWS[4:])))
    (folder / "part-9.jsonl").write_bytes(b"")  # an empty part of several
    (folder / "README.md").write_text("About it.")
    (folder / ".hidden.jsonl").write_text("{")
    assert pairs("d") == pairs(folder) == EXPECTED
    assert pairs("d/*.jsonl") == EXPECTED[:2]
    assert pairs("d/**/*.jsonl*") == [*EXPECTED[:2], *EXPECTED[4:]]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pairs("~/d/one.jsonl?limit=1") == EXPECTED[:1]
    assert pairs("~/d") == EXPECTED
    (folder / "a[1].jsonl").write_bytes(lines(ROWS[5:]))
    assert pairs("d/a[1].jsonl") == EXPECTED[5:]  # a file's own brackets


def test_a_folders_splits_and_configurations(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(lines(ROWS[:4]))
    (tmp_path / "test.jsonl").write_bytes(lines(ROWS[4:]))
    assert pairs(tmp_path) == EXPECTED[:4]
    assert pairs(f"{tmp_path}?split=test") == EXPECTED[4:]
    assert pairs(f"{tmp_path}?split=train+test") == EXPECTED
    assert pairs(f"{tmp_path}?split=all") == EXPECTED
    assert pairs(f"{tmp_path}?split=train[1:3]") == EXPECTED[1:3]
    assert pairs(f"{tmp_path}?split=train[-50%:]") == EXPECTED[2:4]
    with pytest.raises(DataError, match=r"no split 'tset'; it has train, test"):
        pairs(f"{tmp_path}?split=tset")
    with pytest.raises(DataError, match=r"split 'train\[x\]'"):
        pairs(f"{tmp_path}?split=train[x]")
    with pytest.raises(DataError, match="no configuration 'de'; it has none"):
        pairs(f"{tmp_path}?config=de")


@pytest.mark.found
@pytest.mark.parametrize("name", ["no", "on", "off", "yes", "null", "1.0", "2024-01-01", "007"])
def test_a_configuration_has_the_name_that_is_written(tmp_path, name):
    (tmp_path / "en.jsonl").write_bytes(lines())
    (tmp_path / "nb.jsonl").write_bytes(lines([{"prompt": "n", "completion": "nei"}]))
    card = "---\nlicense: mit\nconfigs:\n- config_name: en\n  default: true\n"
    card += f"  data_files: en.jsonl\n- config_name: '{name}'\n  data_files:\n"
    card += "  - split: train\n    path: nb.jsonl\n---\n# Title\n"
    (tmp_path / "README.md").write_text(card)
    assert pairs(tmp_path) == EXPECTED
    assert pairs(f"{tmp_path}?config={name}") == [("n", "nei")]
    (tmp_path / "README.md").write_text(card.replace("  default: true\n", ""))
    with pytest.raises(DataError, match=f"choose one by .*en, {name}"):
        pairs(tmp_path)


def test_an_unquoted_configuration_keeps_its_name_too(tmp_path):
    (tmp_path / "nb.jsonl").write_bytes(lines())
    (tmp_path / "x.jsonl").write_bytes(lines(ROWS[:1]))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: no\n  data_files: nb.jsonl\n- config_name: 1.10\n"
        "  data_files: x.jsonl\n---\n"
    )
    assert pairs(f"{tmp_path}?config=no") == EXPECTED
    assert pairs(f"{tmp_path}?config=1.10") == EXPECTED[:1]
    with pytest.raises(DataError, match=r"no configuration '1\.1'; it has no, 1\.10"):
        pairs(f"{tmp_path}?config=1.1")


@pytest.mark.found
def test_what_save_to_disk_wrote(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data.select(range(2))).save_to_disk(tmp_path / "two")
    assert pairs(tmp_path / "one") == pairs(tmp_path / "two") == EXPECTED
    assert pairs(f"{tmp_path / 'two'}?split=test") == EXPECTED[:2]
    assert pairs(f"{tmp_path / 'two'}?split=train[:50%]&limit=2") == EXPECTED[:2]
    with pytest.raises(DataError, match="no split 'none'; it has train, test"):
        pairs(f"{tmp_path / 'two'}?split=none")
    with pytest.raises(DataError, match="does not take config"):
        pairs(f"{tmp_path / 'one'}?config=x")
    datasets.Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match="no rows"):
        pairs(tmp_path / "none")
    (tmp_path / "two" / "train" / "state.json").write_text("{")
    with pytest.raises(DataError, match="two cannot be read"):
        pairs(tmp_path / "two")


TOOLS = [
    {"messages": [{"role": "assistant", "call": {"city": "Oslo"}}], "x": None},
    {
        "messages": [{"role": "assistant", "call": {"days": 3, "deep": [{"a": 1}, {"b": 2}]}}],
        "x": 1,
    },
]


@pytest.mark.found
@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved"])
def test_keys_of_other_rows_are_not_invented(tmp_path, kind):
    data = datasets.Dataset.from_list(TOOLS)
    if kind == "saved":
        data.save_to_disk(tmp_path / "s")
        found = [row for _, row in files.of_folder(str(tmp_path / "s"), {})]
    else:
        path = tmp_path / f"x.{kind}"
        if kind == "parquet":
            data.to_parquet(path)
        else:
            pyarrow.feather.write_feather(data.data.table, path)
        found = rows_of(path)
    assert found == TOOLS


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_nulls_of_json_columns_are_kept(tmp_path, kind):
    features = datasets.Features({"tools": datasets.List(datasets.Json())})
    rows = [{"tools": [{"a": None}, {"b": [None, {"c": None}]}]}, {"tools": []}, {"tools": None}]
    data = datasets.Dataset.from_list(rows, features=features)
    if kind == "saved":
        data.save_to_disk(tmp_path / "s")
        assert [row for _, row in files.of_folder(str(tmp_path / "s"), {})] == rows
    else:
        data.to_parquet(tmp_path / "x.parquet")
        assert rows_of(tmp_path / "x.parquet") == rows


def test_each_row_has_its_location(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_bytes(b"\n" + lines(ROWS[:2]))
    Path("a.csv").write_text('prompt,completion\n"a\nb",c\nd,e\n')
    Path("a.json").write_text(json.dumps(ROWS[:2]))
    Path("a.parquet").write_bytes(PARQUET.getvalue().to_pybytes())
    found = {
        kind: [at for at, _ in files.of_file(Path(f"a.{kind}"))][:2]
        for kind in ("jsonl", "csv", "json", "parquet")
    }
    assert found == {
        "jsonl": ["a.jsonl, line 2", "a.jsonl, line 3"],
        "csv": ["a.csv, line 2", "a.csv, line 4"],
        "json": ["a.json, entry 1", "a.json, entry 2"],
        "parquet": ["a.parquet, row 0", "a.parquet, row 1"],
    }
    [example] = load("a.jsonl?limit=1", heldout=0, train=9).train
    assert example.location == "a.jsonl, line 2"


PARQUET_BYTES = PARQUET.getvalue().to_pybytes()


@pytest.mark.found
@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.jsonl", lines().decode().encode("utf-16"), "UTF-16.*iconv"),
        ("x.jsonl", lines().decode().encode("utf-16-le"), "UTF-16.*iconv"),
        ("x.jsonl", lines().decode().encode("utf-32"), "UTF-32.*iconv"),
        ("x.csv", table().decode().encode("utf-16"), "UTF-16.*iconv"),
        (
            "x.jsonl",
            lines() + '{"prompt": "é"}'.encode("latin-1"),
            "line 7: not UTF-8.*0xe9.*iconv",
        ),
        ("x.csv", b"prompt,completion\na,\xe9\n", "line 2: not UTF-8"),
        ("x.json", b'["\xe9"]', "line 1: not UTF-8"),
        ("x.jsonl", b"", "no rows"),
        ("x.jsonl", b"\n  \n\r\n", "no rows"),
        ("x.jsonl", b"\xef\xbb\xbf", "no rows"),
        ("x.json", b"", "no rows"),
        ("x.json", b"[]", "no rows"),
        ("x.csv", b"", "no rows"),
        ("x.csv", b"prompt,completion\n", "no rows"),
        ("x.txt", b"\n", "no rows"),
        ("x.parquet", b"", "cannot be read"),
        ("x.parquet", PARQUET_BYTES[:-9], "cannot be read"),
        ("x.parquet", PARQUET_BYTES[: len(PARQUET_BYTES) // 2], "cannot be read"),
        ("x.arrow", ARROW.getvalue().to_pybytes()[:60], "cannot be read"),
        ("x.feather", FEATHER.getvalue().to_pybytes()[:-20], "cannot be read"),
        ("x.jsonl.gz", gz(lines())[:-9], "cannot be read"),
        ("x.jsonl.zst", zstandard.compress(lines())[:-4], "cannot be read"),
        ("x.jsonl.bz2", bz2.compress(lines())[:-4], "cannot be read"),
        ("x.jsonl.xz", lzma.compress(lines())[:-9], "cannot be read"),
        ("x.jsonl.gz", lines(), "cannot be read"),
        ("x.jsonl.zst", lines(), "cannot be read"),
        ("x.jsonl.gz", gz(b""), "no rows"),
        ("x.jsonl", gz(lines()), r"without \.gz in its name"),
        ("x.csv", zstandard.compress(table()), r"without \.zst in its name"),
        ("x.csv", b"a,b\n1,2,3\n", "line 2: 3 cells, and the header has 2"),
        ("x.csv", b"prompt,completion\n1,2\n3\n", "line 3: 1 cells"),
        ("x.csv", b"prompt, completion\na, b\n", "line 1: the column ' completion' has white"),
        ("x.csv", b"prompt,completion\ra,b\r", r"ends with \\r alone"),
        ("x.csv", b'a,b\n1,"2\n', "line 2: not CSV"),
        ("x.csv", b'a,b\n1,"2"3\n', "line 2: not CSV"),
        ("x.csv", b"a,a\n1,2\n", "'a' is in the header twice"),
        ("x.csv", b"prompt;completion\n1;2\n", "delimiter=;"),
        ("x.jsonl", b'{"a": 1, "b": {"c": 1, "c": 2}}\n', "line 1: .*'c' is given twice"),
        ("x.json", b'[{"a": 1, "a": 1}]', "'a' is given twice"),
        ("x.jsonl", b'{"a": NaN}\n', "NaN is not"),
        ("x.jsonl", b'{"a": [-Infinity]}\n', "-Infinity is not"),
        ("x.jsonl", b'{"a": 1e999}\n', "too large"),
        ("x.jsonl", b"[" * 100_000, "nested too deeply"),
        ("x.json", b"[" * 100_000, "nested too deeply"),
        ("x.jsonl", b"\n{", "line 2: not JSON"),
        ("x.json", b'{"a": [{}], "b": [{}]}', r"several .*\(a, b\).*field=a"),
        ("x.json", b'{"a": [1], "b": 2}', "neither a list nor"),
        ("x.json", b'"text"', "neither a list nor"),
        ("x.yaml", b"a: 1", r"ends in \.jsonl"),
        ("x", b"a: 1", r"ends in \.jsonl"),
    ],
)
def test_files_that_cannot_be_read_are_named_in_one_line(tmp_path, monkeypatch, name, data, says):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(data)
    with pytest.raises(DataError, match=says) as raised:
        load(name, heldout=0, train=1)
    assert str(raised.value).startswith(name)
    assert "\n" not in str(raised.value)


@pytest.mark.found
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("question.jsonl", r"no such file; near it: questions\.jsonl"),
        ("questions.json", r"near it: questions\.jsonl"),
        ("QUESTIONS.jsonl", r"near it: questions\.jsonl"),
        ("data/trian.jsonl", r"near it: train\.jsonl"),
        ("dta/train.jsonl", r"no such folder dta; near it: data"),
        ("./nothing", "no such file"),
        ("/no/such/file", "no such folder /no"),
        ("*.csv", "the pattern matches nothing"),
        ("dat*", "the pattern matches no file, but data"),
        ("pipe.jsonl", "a pipe or a device, not a file"),
        ("data?split=train[:0]", "takes none of the 6 rows"),
        ("empty", "holds no data files"),
        ("only", "holds no data files"),
        ("data/trian", "near it: train.jsonl"),
        ("bbeh:question.json", "no such file"),
        ("link.jsonl", "a link to a file that does not exist"),
        ("", "names no data set"),
        (" ?limit=1", "names no data set"),
        ("http://127.0.0.1:1/x.jsonl", "Cannot connect"),
    ],
)
def test_names_of_nothing(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "empty", "only"):
        (tmp_path / folder).mkdir()
    (tmp_path / "questions.jsonl").write_bytes(lines())
    (tmp_path / "data" / "train.jsonl").write_bytes(lines())
    (tmp_path / "only" / "model.bin").write_bytes(b"x")
    (tmp_path / "link.jsonl").symlink_to("absent.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match=says) as raised:
        load(name, heldout=0, train=1)
    assert "\n" not in str(raised.value)


@pytest.mark.found
def test_columns_of_files_are_mapped(tmp_path):
    rows = [{"question": f"q{i}", "reply": f"a{i}", "more": i} for i in range(6)]
    (tmp_path / "x.jsonl").write_bytes(lines(rows))
    (tmp_path / "x.csv").write_bytes(table(rows))
    for name in ("x.jsonl", "x.csv"):
        path = f"{tmp_path / name}?prompt=question&completion=reply"
        assert pairs(path) == EXPECTED
        with pytest.raises(DataError, match=r"line \d: no column 'quest' \(for prompt\).*question"):
            pairs(f"{tmp_path / name}?prompt=quest&completion=reply")
    [example] = load(f"{path}&limit=1", heldout=0, train=1).train
    assert example.columns["more"] == "0"
    (tmp_path / "y.jsonl").write_bytes(lines([{"prompt": "a", "completion": "b", "q": "c"}]))
    assert pairs(f"{tmp_path / 'y.jsonl'}?prompt=q") == [("c", "b")]
    # Of alpaca's rows, input is a part of the question.
    row = {"instruction": "i", "input": "n", "output": "o"}
    (tmp_path / "alpaca.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="text of the column 'input'"):
        pairs(f"{tmp_path / 'alpaca.jsonl'}?prompt=instruction&completion=output")


TEXT = st.text(
    st.one_of(
        st.sampled_from(SEPARATORS + " \t\r\n\"',;\\\ufeff\xa0\u3000"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=12,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.fixed_dictionaries({"a": TEXT, "b": TEXT}), min_size=1, max_size=4))
def test_values_are_kept_exactly(tmp_path, rows):
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines(rows))
    assert rows_of(path) == rows
    for escaped in (True, False):
        path = tmp_path / "x.json"
        path.write_text(json.dumps(rows, ensure_ascii=escaped), encoding="utf-8", newline="")
        assert rows_of(path) == rows
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t")):
        for end in ("\n", "\r\n"):
            out = io.StringIO(newline="")
            writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator=end)
            writer.writerows([["a", "b"], *([row["a"], row["b"]] for row in rows)])
            (tmp_path / name).write_text(out.getvalue(), encoding="utf-8", newline="")
            assert rows_of(tmp_path / name) == rows
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert rows_of(tmp_path / "x.parquet") == rows


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        TEXT,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.dictionaries(TEXT, JSON, max_size=4), min_size=1, max_size=3))
def test_json_values_are_kept_exactly(tmp_path, rows):
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(zstandard.compress(lines(rows)))
    assert rows_of(path) == rows


@pytest.mark.found
def test_cells_stay_text(tmp_path):
    cells = ["007", "no", "1.0", "NaN", "null", "", " x ", "2024-01-01", "true", "N/A", "1e5"]
    (tmp_path / "x.csv").write_bytes(table([{"a": cell, "b": "x"} for cell in cells]))
    assert [row["a"] for row in rows_of(tmp_path / "x.csv")] == cells
    long = "x" * 300_000
    (tmp_path / "x.csv").write_bytes(table([{"a": long, "b": "y"}]))
    assert rows_of(tmp_path / "x.csv") == [{"a": long, "b": "y"}]


def test_extensions():
    def kind(name):
        return places.Place(None, "", name).extensions

    assert kind("a.b/c.JSONL.Gz") == (".jsonl", ".gz")
    assert kind("https://host/x.csv?token=a.json") == (".csv", "")
    assert kind("v1.0/data") == ("", "")


@pytest.mark.found
@pytest.mark.parametrize("delimiter", ["", ";;", "%0A", "%22"])
def test_a_delimiter_is_one_character(tmp_path, delimiter):
    (tmp_path / "x.csv").write_bytes(table())
    with pytest.raises(DataError, match=r"delimiter: .* is not one character"):
        load(f"{tmp_path}/x.csv?delimiter={delimiter}", heldout=0, train=1)
