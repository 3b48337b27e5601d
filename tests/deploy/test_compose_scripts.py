"""Scripts of deploy/compose: passwords of a host, and the keys that the first start makes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import dotenv
import pytest

from tests.support.deploy.compose import FOLDER, project
from tests.support.deploy.scripts import programs

# In place of bmt-server: its keys are files in $REGISTRY, and `serve` prints what it was given.
BMT_SERVER = r"""
case "$1 $2" in
  "keys generate") echo bmt_adm_generated;;
  "keys list") [ -d "$REGISTRY" ] || exit 1; cat "$REGISTRY/labels" 2>/dev/null || echo '[]';;
  "keys create")
    shift 2; echo "$@" >>"$REGISTRY/created"; echo '{"label": "prometheus"}' >"$REGISTRY/labels"
    echo "bmt_met_$(grep -c . "$REGISTRY/created")";;
  *) echo "admin $BMT_ADMIN_KEY"; echo "served $*";;
esac
"""


def _secrets(folder: Path) -> str:
    script = folder / "compose/secrets.sh"
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=True)
    return done.stdout


def test_each_host_has_passwords_of_its_own(tmp_path):
    made = []
    for host in ("a", "b"):
        folder = tmp_path / host
        shutil.copytree(FOLDER / "compose", folder / "compose")
        _secrets(folder)
        assert (folder / ".env").stat().st_mode & 0o777 == 0o600
        made.append(dotenv.dotenv_values(folder / ".env"))
        # The file is enough for a start.
        assert project({k: v or "" for k, v in made[-1].items()})["services"]
        before = (folder / ".env").read_text()
        assert "stays" in _secrets(folder)
        assert (folder / ".env").read_text() == before
    words = [values[name] for values in made for name in ("VALKEY_PASSWORD", "GRAFANA_PASSWORD")]
    assert len({*words}) == 4
    assert all(len(word or "") == 48 for word in words)


class Start:
    """serve.sh on folders that stay between starts."""

    def __init__(self, folder: Path) -> None:
        self.keys, self.registry = folder / "keys", folder / "registry"
        self.keys.mkdir()
        self.registry.mkdir()
        self._environment = programs(folder / "bin", bmt_server=BMT_SERVER)

    def __call__(self, **more: str) -> subprocess.CompletedProcess[str]:
        given = {"KEYS": str(self.keys), "REGISTRY": str(self.registry), "SERVICE": "server-cpu"}
        return subprocess.run(
            ["sh", str(FOLDER / "compose/serve.sh"), "serve", "a model", "--port=8000"],
            env={**self._environment, "BMT_ADMIN_KEY": "", **given, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    def created(self) -> list[str]:
        path = self.registry / "created"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def start(tmp_path):
    return Start(tmp_path)


def test_the_first_start_makes_keys_and_says_where(start):
    done = start()
    assert done.returncode == 0, done.stderr
    assert f"docker compose exec server-cpu cat {start.keys}/admin" in done.stdout
    assert done.stdout.endswith("admin bmt_adm_generated\nserved serve a model --port=8000\n")
    assert start.created() == ["--scope metrics --label prometheus"]
    modes = {p.name: p.stat().st_mode & 0o777 for p in start.keys.iterdir()}
    # Prometheus has a user of its own, which reads one of them.
    assert modes == {"admin": 0o600, "metrics": 0o644}
    assert (start.keys / "metrics").read_text().strip() == "bmt_met_1"
    assert start().returncode == 0
    assert len(start.created()) == 1


def test_an_emptied_registry_gets_another_key(start):
    start()
    shutil.rmtree(start.registry)
    start.registry.mkdir()
    assert start().returncode == 0
    assert len(start.created()) == 1
    (start.keys / "metrics").unlink()
    assert start().returncode == 0
    assert (start.keys / "metrics").read_text().strip() == "bmt_met_2"


def test_a_server_with_keys_starts_while_the_registry_is_away(start):
    shutil.rmtree(start.registry)
    done = start()
    assert done.returncode == 1
    assert "no key for Prometheus" in done.stderr
    assert "served" not in done.stdout
    start.registry.mkdir()
    start()
    shutil.rmtree(start.registry)
    done = start()
    assert done.returncode == 0
    assert "served" in done.stdout


def test_a_key_of_ones_own_is_used_and_not_kept(start):
    done = start(BMT_ADMIN_KEY="bmt_adm_mine")
    assert "admin bmt_adm_mine\n" in done.stdout
    assert [p.name for p in start.keys.iterdir()] == ["metrics"]
    assert "cat" not in done.stdout
