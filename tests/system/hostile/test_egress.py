"""Case 24 of the hostile ones: in a network namespace, whatever is asked, no packet leaves it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scenarios.figures import Figures
from tests.system.hostile.egress_child import CONTROL

pytestmark = [pytest.mark.operate, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[3]
APART = ["unshare", "--user", "--map-root-user", "--net"]


def test_egress(smol, tmp_path):
    probe = "ip tuntap add mode tun name out"
    if subprocess.run([*APART, "sh", "-c", probe], check=False).returncode:
        pytest.skip("this host gives no network namespace with a device of its own")
    command = [sys.executable, "-m", "tests.operate.egress_child", str(smol), str(tmp_path)]
    done = subprocess.run([*APART, *command], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["control"] == [CONTROL[0]], "what leaves must be seen"
    figures, statuses = Figures("egress"), found["statuses"]
    for stage in ("start", "use", "hostile", "stop"):
        where = found[stage]
        size = f"{len(statuses)} requests that name addresses" if stage == "hostile" else "once"
        figures.record(stage, len(where), "addresses", "== 0", size=size, note=" ".join(where))
    assert {s // 100 for s in statuses} <= {2, 4}, statuses
    figures.end()
