"""Data sets by URL and by Hub id, against servers on loopback, and without a network."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bmt_trainer.data.sources import load
from bmt_trainer.errors import DataError

from tests.support.http.storage import SHA, Bucket, Handler, Hub, self_signed, serving

# Loads each named data set in a process of its own, since libraries read their environment when
# they are imported: prints the split, or the error.
LOADS = """
import json, sys
from bmt_trainer.data.sources import load
from bmt_trainer.errors import DataError
for name in sys.argv[1:]:
    try:
        split = load(name, heldout=0, train=10**6)
        rows = [[e.messages[-1]["content"], e.answer] for e in split.train]
        print(json.dumps({"rows": sorted(rows), "read": split.counts.rows}))
    except DataError as error:
        print(json.dumps({"error": str(error)}))
"""
ROWS = [[f"q{i}", f"a{i}"] for i in range(6)]


def lines(rows=ROWS) -> bytes:
    return "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows).encode()


def parquet(rows=ROWS) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table({"prompt": [p for p, _ in rows], "completion": [c for _, c in rows]}), sink
    )
    return sink.getvalue().to_pybytes()


def loaded(tmp_path: Path, *names: str, **environment: str) -> list[dict]:
    own = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_EC2_METADATA_DISABLED": "true",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADS, *names], capture_output=True, text=True, env=own, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.found
def test_https(tmp_path):
    certificate = self_signed(tmp_path / "own.pem")
    files = {"d/a.jsonl": lines(), "a.parquet": parquet(), "empty.jsonl": b""}
    with serving(Handler, files, certificate) as (url, asked):
        found = loaded(
            tmp_path,
            f"{url}/d/a.jsonl",
            f"{url}/a.parquet",
            f"{url}/a.parquet?limit=2",
            f"{url}/d/a.jsonl%3Fsigned=x?limit=3",
            f"{url}/none.jsonl",
            f"{url}/empty.jsonl",
            f"{url}/d/a.jsonl?signed=x",
            SSL_CERT_FILE=str(certificate),
        )
    assert found[0]["rows"] == found[1]["rows"] == ROWS
    assert (len(found[2]["rows"]), len(found[3]["rows"])) == (2, 3)
    assert any("signed=x" in request for request in asked)
    assert f"{url}/none.jsonl" in found[4]["error"]
    assert "no rows" in found[5]["error"]
    assert "does not take signed" in found[6]["error"]
    assert all("\n" not in result["error"] for result in found[4:])


@pytest.mark.found
def test_s3(tmp_path):
    half = len(ROWS) // 2
    files = {
        "b/d/one.jsonl": lines(ROWS[:half]),
        "b/d/two.jsonl": lines(ROWS[half:]),
        "b/x.parquet": parquet(),
    }
    datasets.Dataset.from_list([{"prompt": p, "completion": c} for p, c in ROWS]).save_to_disk(
        tmp_path / "saved"
    )
    files |= {f"b/saved/{f.name}": f.read_bytes() for f in (tmp_path / "saved").iterdir()}
    with serving(Bucket, files) as (url, asked):
        found = loaded(
            tmp_path,
            *("s3://b/d/one.jsonl", "s3://b/d/*.jsonl", "s3://b/d", "s3://b/x.parquet"),
            *("s3://b/saved", "s3://b/none.jsonl", "s3://b/none*.jsonl"),
            AWS_ENDPOINT_URL=url,
        )
    assert found[0]["rows"] == ROWS[:half]
    assert [result["rows"] for result in found[1:5]] == [ROWS] * 4
    assert "s3://b/none.jsonl" in found[5]["error"]
    assert "no such file" in found[6]["error"]


@pytest.mark.found
def test_the_hub(tmp_path):
    card = "---\nconfigs:\n- config_name: en\n  default: true\n  data_files: en.jsonl\n"
    card += "- config_name: 'no'\n  data_files: nb.jsonl\n---\n"
    files = {
        "org/set/README.md": card.encode(),
        "org/set/en.jsonl": lines(),
        "org/set/nb.jsonl": lines([["n", "nei"]]),
        "org/set/sub/x.csv": b"prompt,completion\n007,no\n",
    }
    names = [
        *("org/set", "org/set?config=no", "org/set?split=train[:50%]"),
        *(f"org/set?revision={SHA}", "org/set?revision=1.0", "org/none"),
        *("hf://datasets/org/set/en.jsonl", "hf://datasets/org/set/sub/x.csv"),
        *("hf://datasets/org/set/none.jsonl", "org/set?streaming=true", "org/set?split=tset"),
    ]
    with serving(Hub, files) as (url, asked):
        found = loaded(tmp_path, *names, HF_ENDPOINT=url)
        assert asked
    by_name = dict(zip(names, found, strict=True))
    assert by_name["org/set"]["rows"] == ROWS
    assert by_name["org/set?config=no"]["rows"] == [["n", "nei"]]
    assert by_name["org/set?split=train[:50%]"]["rows"] == ROWS[:3]
    assert by_name[f"org/set?revision={SHA}"]["rows"] == ROWS
    assert by_name["hf://datasets/org/set/en.jsonl"]["rows"] == ROWS
    assert by_name["hf://datasets/org/set/sub/x.csv"]["rows"] == [["007", "no"]]
    assert by_name["org/set?streaming=true"]["rows"] == ROWS
    for name, says in {
        "org/set?revision=1.0": "1.0",
        "org/none": "org/none",
        "org/set?split=tset": "tset",
        "hf://datasets/org/set/none.jsonl": "none.jsonl",
    }.items():
        assert says in by_name[name]["error"], by_name[name]
        assert "\n" not in by_name[name]["error"]
    # Once loaded, it is in the cache, and the Hub is away.
    gone, kept, absent = loaded(
        tmp_path, "org/other", "org/set?config=no", "org/set?config=de", HF_ENDPOINT=url
    )
    assert "cannot be reached" in gone["error"]
    assert kept["rows"] == [["n", "nei"]]
    assert "error" in absent


def test_proxies_are_used(tmp_path):
    files = {"org/set/a.jsonl": lines(), "a.jsonl": lines()}
    direct = {"NO_PROXY": "", "no_proxy": "", "HF_ENDPOINT": "http://hub.invalid"}
    with serving(Hub, files) as (url, _):
        [hub] = loaded(tmp_path, "org/set", HTTP_PROXY=url, http_proxy=url, **direct)
    with serving(Handler, files) as (url, asked):
        name = "http://files.invalid/a.jsonl"
        [file] = loaded(tmp_path, name, HTTP_PROXY=url, http_proxy=url, **direct)
    assert hub["rows"] == file["rows"] == ROWS
    assert any("files.invalid" in request for request in asked)


UNREACHABLE = """
import sys, time
from bmt_trainer.data.sources import load
from bmt_trainer.errors import TrainerError
from bmt_trainer.models import checkpoint_folder
for ask in (lambda: load("org/name", heldout=1, train=1), lambda: checkpoint_folder("org/name")):
    start = time.monotonic()
    try:
        ask()
    except TrainerError as error:
        print(f"{time.monotonic() - start:.2f} {error}")
"""


@pytest.mark.found
@pytest.mark.parametrize("how", ["refused", "silent", "unknown host", "offline"])
def test_without_a_network_a_hub_id_fails_at_once_in_one_line(tmp_path, how):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port, clients = server.getsockname()[1], []
        if how == "silent":
            # Connections wait without an answer once the queue is full.
            server.listen(0)
            for _ in range(4):
                clients.append(socket.socket())
                clients[-1].setblocking(False)
                clients[-1].connect_ex(("127.0.0.1", port))
        host = "hub.invalid" if how == "unknown host" else "127.0.0.1"
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1" if how == "offline" else "0",
            "HF_ENDPOINT": f"http://{host}:{port}",
            "HF_HOME": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, "-c", UNREACHABLE],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        for client in clients:
            client.close()
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert len(shown) == 2
    for line in shown:
        seconds, _, message = line.partition(" ")
        assert float(seconds) < 2.5
        assert "org/name" in message
        assert "HF_HUB_OFFLINE" in message if how == "offline" else "cannot be reached" in message
    assert "Retrying" not in done.stderr


def test_a_cached_copy_of_another_revision_is_not_taken(tmp_path):
    other = "89abcdef" * 5
    files = {"org/set/README.md": b"", "org/set/a.jsonl": lines()}
    with serving(Hub, files, revisions={"main": SHA, SHA: SHA, "v1": SHA}) as (url, _):
        [first] = loaded(tmp_path, "org/set?revision=v1", HF_ENDPOINT=url)
    assert first["rows"] == ROWS
    kept, unknown, hashed = loaded(
        tmp_path,
        *("org/set?revision=v1", "org/set?revision=v2", f"org/set?revision={other}"),
        HF_ENDPOINT=url,
    )
    assert kept["rows"] == ROWS
    assert "v2" in unknown["error"]
    assert other in hashed["error"]


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"s3://b/x\.jsonl: .*pip install s3fs"):
        load("s3://b/x.jsonl", heldout=0, train=1)
    with pytest.raises(DataError, match="cannot be read"):
        load("what://b/x.jsonl", heldout=0, train=1)
