"""Alerts by `promtool test rules`: each in a case in which it fires, and quiet in all others.

A case names exactly the alerts that fire in it, so it is a quiet case of every other one.
"""

from __future__ import annotations

import ast
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from bmt_server import errors

from tests.support.deploy.chart import CHART, named, one, refusal, render
from tests.support.programs import ROOT, tool

RULES = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
ALERTS = [rule["alert"] for rule in RULES["groups"][0]["rules"]]
POD = 'job="bmt-server",namespace="inference",pod="masks-7c9fd5bd8-x2x4q"'
# Another release in the namespace, whose pods' names begin alike.
OTHER = 'job="bmt-other",namespace="inference",pod="masks-b-7c9fd5bd8-x2x4q"'
MINUTES = 60
GOOD = 20  # minutes before a fault


@dataclass(frozen=True)
class Case:
    """Series on top of the healthy ones, and the alerts that fire at the end.

    An alert by code is written alert:code.
    """

    name: str
    series: dict[str, str]
    fires: tuple[str, ...] = ()
    without: str = ""  # healthy series that end with the fault


def _steady(value: float) -> str:
    return f"{value}x{MINUTES}"


def _later(text: str) -> str:
    """The samples, after the good minutes."""
    return f"_x{GOOD - 1} {text}"


def _codes(samples: str) -> dict[str, str]:
    return {f'bmt_request_errors_total{{POD,code="{code}"}}': samples for code in CODES}


def _code(code: str, samples: str) -> dict[str, str]:
    return {f'bmt_request_errors_total{{POD,code="{code}"}}': samples}


def _http(outcome: str, samples: str) -> dict[str, str]:
    return {f'bmt_http_requests_total{{POD,route="/v1/completions",outcome="{outcome}"}}': samples}


HEALTHY = {
    "up{POD}": _steady(1),
    "bmt_registry_up{POD}": _steady(1),
    "bmt_base_replaced{POD}": _steady(0),
    "vllm:num_requests_waiting{POD}": _steady(3),
    "bmt_mask_evictions_total{POD}": f"0+6x{MINUTES}",
    **_http("ok", f"0+600x{MINUTES}"),
    **{
        f'bmt_cold_load_seconds_bucket{{POD,source="disk",le="{le}"}}': f"0+{n}x{MINUTES}"
        for le, n in (("0.1", 60), ("1.0", 60), ("10.0", 60), ("+Inf", 60))
    },
}
# Codes with an alert of their own: a single error of the last minutes is enough.
CODES = {
    "internal": "BmtInternalErrors",
    "blob_missing": "BmtMasksUnusable",
    "blob_damaged": "BmtMasksUnusable",
    "mask_unusable": "BmtMasksUnusable",
    "file_damaged": "BmtMasksUnusable",
    "registry_full": "BmtRegistryFull",
    "not_durable": "BmtNotDurable",
    "registry_may_evict": "BmtRegistryRefused",
    "registry_too_old": "BmtRegistryRefused",
    "registry_refused": "BmtRegistryRefused",
    "blobs_unavailable": "BmtBlobsUnavailable",
    "blobs_refused": "BmtBlobsUnavailable",
    "blobs_elsewhere": "BmtBlobsUnavailable",
    "blobs_lost": "BmtBlobsUnavailable",
    "cache_full": "BmtCacheFull",
    "cache_unusable": "BmtCacheFull",
    "memory_full": "BmtMemoryFull",
}
# They mean that requests or uploads are refused, which other alerts notice by their share or rate.
BY_SHARE = {"queue_full", "unavailable", "registry_unavailable", "budgets_unavailable"}
BY_RATE = {"uploads_full", "imports_full", "registry_busy", "quota_busy"}
# A place that a caller names does not answer: the fault is there, and the caller gets its name.
ELSEWHERE = {"source_unavailable"}
# Ordinary states of a server that starts or stops.
ORDINARY = {"starting", "stopping", "disconnected"}

BY_CODE = tuple(f"{alert}:{code}" for code, alert in CODES.items())

CASES = (
    Case("healthy", {}),
    Case("the first error of each code", _codes(f"_x{MINUTES - 6} 1x5"), BY_CODE),
    Case("another error of each code", _codes(f"5x{MINUTES - 6} 6x5"), BY_CODE),
    Case("errors of long ago", _codes(_later(f"1x{MINUTES - GOOD}"))),
    Case("errors of clients", _code("bad_json", f"1+60x{MINUTES}")),
    Case("target gone", {}, ("BmtTargetGone",), without="bmt_registry_up up"),
    Case("target loads", {"up{POD2}": _later("_x20 0x20")}),
    Case("target refuses", {"up{POD2}": _later("0x40")}, ("BmtScrapeFails",)),
    Case("registry down", {"bmt_registry_up{POD2}": _later("0x40")}, ("BmtRegistryDown",)),
    Case("registry away for a moment", {"bmt_registry_up{POD2}": _later("1x28 0 1x10")}),
    Case(
        "every request refused",
        _http("server_error", _later("0+600x40")) | _http("ok", f"600x{MINUTES}"),
        ("BmtRequestsRefused",),
    ),
    Case(
        "no request ever answered",
        _http("server_error", f"0+600x{MINUTES}") | _http("ok", "_"),
        ("BmtRequestsRefused",),
    ),
    Case("2 % refused", _http("server_error", _later("0+12x40")), ("BmtRequestsRefused",)),
    Case("0.5 % refused", _http("server_error", _later("0+3x40"))),
    Case("refused by their own fault", _http("client_error", _later("0+600x40"))),
    Case("no requests", _http("ok", f"600x{MINUTES}")),
    Case("uploads wait", _code("uploads_full", "0+60x60"), ("BmtUploadsWait:uploads_full",)),
    Case("imports wait", _code("imports_full", "0+60x60"), ("BmtUploadsWait:imports_full",)),
    Case("sources are down", _code("source_unavailable", "0+60x60")),
    Case("quota busy", _code("quota_busy", "0+60x60"), ("BmtUploadsWait:quota_busy",)),
    Case("registry busy", _code("registry_busy", "0+60x60"), ("BmtUploadsWait:registry_busy",)),
    Case("an upload waits", _code("uploads_full", "_x50 1x10")),
    Case("base replaced", {"bmt_base_replaced{POD2}": _later("1x40")}, ("BmtBaseReplaced",)),
    Case("thrashing", {"bmt_mask_evictions_total{POD2}": "0+120x60"}, ("BmtMaskThrashing",)),
    Case("queue", {"vllm:num_requests_waiting{POD2}": _steady(21)}, ("BmtQueueGrows",)),
    Case("queue that empties", {"vllm:num_requests_waiting{POD2}": _later("30x30 0 30x9")}),
    Case(
        "slow loads",
        {
            f'bmt_cold_load_seconds_bucket{{POD2,source="registry",le="{le}"}}': f"0+{n}x{MINUTES}"
            for le, n in (("0.1", 0), ("1.0", 0), ("10.0", 60), ("+Inf", 60))
        },
        ("BmtSlowColdLoads",),
    ),
)


def _inputs(series: dict[str, str], pod: str, ended: str = "") -> list[dict[str, str]]:
    """Series of the pod; POD2 is a second pod of the same release."""
    second = pod.replace("x2x4q", "k8k9m")
    return [
        {
            "series": name.replace("POD2", second).replace("POD", pod),
            "values": f"1x{GOOD} stale" if name.partition("{")[0] in ended.split() else samples,
        }
        for name, samples in series.items()
    ]


def _test(name: str, inputs: list[dict[str, str]], fires: tuple[str, ...]) -> dict[str, Any]:
    firing = {"expr": 'group by (alertname, code) (ALERTS{alertstate="firing"})'}
    labels = [alert.partition(":") for alert in fires]
    expected = [
        {"labels": f'{{alertname="{a}"{colon and f",code={chr(34)}{c}{chr(34)}"}}}', "value": 1}
        for a, colon, c in labels
    ]
    at = {"eval_time": f"{MINUTES - 1}m", "exp_samples": expected}
    return {
        "name": name,
        "interval": "1m",
        "input_series": inputs,
        "promql_expr_test": [firing | at],
    }


def _of(case: Case, pod: str) -> dict[str, Any]:
    return _test(case.name, _inputs(HEALTHY | case.series, pod, case.without), case.fires)


def _promtool(folder: Path, rules: dict[str, Any], tests: list[dict[str, Any]]) -> str:
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    suite = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yaml").write_text(yaml.safe_dump(suite))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", str(folder / "tests.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.found
def test_every_alert_fires_in_its_case_and_in_no_other(tmp_path):
    assert {alert.partition(":")[0] for case in CASES for alert in case.fires} == set(ALERTS)
    problems = _promtool(tmp_path, RULES, [_of(case, POD) for case in CASES])
    assert not problems, problems


@pytest.mark.found
def test_the_alerts_of_a_release_are_about_its_own_pods(tmp_path):
    """Two releases in a namespace: each has its rules, and is quiet about the other's faults."""
    rules = one(named("everything"), "PrometheusRule")["spec"]
    assert "bmt.*" not in yaml.safe_dump(rules)
    # The job's name is the monitor's choice.
    own = POD.replace("bmt-server", "inference/masks")
    faults = {k: v for case in CASES if not case.without for k, v in case.series.items()}
    tests = [
        _of(next(c for c in CASES if c.fires == BY_CODE), own),
        _of(next(c for c in CASES if c.without), own),
        _test("another's", _inputs(HEALTHY, own) + _inputs(HEALTHY | faults, OTHER), ()),
    ]
    problems = _promtool(tmp_path, rules, tests)
    assert not problems, problems
    # The other release hears of the same faults.
    theirs = render(
        *("-f", str(CHART / "examples/everything.yaml"), "--set", "fullnameOverride=masks-b")
    )
    heard = _promtool(tmp_path, one(theirs, "PrometheusRule")["spec"], tests[2:])
    assert "BmtScrapeFails" in heard


def _raised() -> set[str]:
    """Codes of the server's errors of 5xx, and of a mask that the registry has lost."""
    kinds = {"Unavailable", "RegistryDown", "CacheFull", "MemoryFull", "RegistryFull", "BlobError"}
    found = set()
    for path in (ROOT / "server/bmt_server").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") in kinds):
                continue
            words = [k.value for k in call.keywords if k.arg == "code"]
            words += call.args[1:2] if call.func.id == "BlobError" else []
            found |= {w.value for w in words if isinstance(w, ast.Constant)}
    kinds_of_errors = (getattr(errors, name, None) for name in kinds)
    return found | {kind.code for kind in kinds_of_errors if kind} | {errors.ApiError.code}


@pytest.mark.found
def test_each_error_of_the_server_has_an_alert():
    raised = _raised()
    assert {"not_durable", "queue_full", "cache_unusable", "blob_damaged", "internal"} <= raised
    # A new code needs a decision here, and an alert that names it.
    assert raised - (CODES.keys() | BY_SHARE | BY_RATE | ELSEWHERE | ORDINARY) == set()
    expressions = {r["alert"]: r["expr"] for r in RULES["groups"][0]["rules"]}
    for code, alert in CODES.items():
        assert code in re.split(r"\W+", expressions[alert])


def test_the_runbook_has_a_line_for_each_alert():
    page = (ROOT / "docs/operating/operate.md").read_text()
    assert re.findall(r"^\| `(Bmt\w+)` \|", page, re.MULTILINE) == ALERTS


@pytest.mark.found
def test_alerts_need_a_monitor():
    message = refusal("--set", "valkey.enabled=true", "--set", "monitoring.rules=true")
    assert "monitoring.monitor" in message
    objects = render(
        *("--set", "valkey.enabled=true", "--set", "monitoring.rules=true"),
        *("--set-string", "monitoring.selector=job=\"vm\""),
    )  # fmt: skip
    assert 'job="vm"' in yaml.safe_dump(one(objects, "PrometheusRule"))
