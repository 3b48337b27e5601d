"""Access to the pods, by network policy, Service and routes; their scaling and monitoring."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.support.deploy.chart import (
    CHART,
    EXAMPLES,
    MINIMAL,
    example,
    helm,
    named,
    one,
    refused,
    render,
    server,
    with_values,
)

VALKEY = ("--set", "valkey.enabled=true")


@pytest.mark.found
def test_the_network_policy_admits_the_charts_own_clients_and_prometheus():
    gateway = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}}]
    policy = one(with_values(networkPolicy={"from": gateway}), "NetworkPolicy")["spec"]
    peers = policy["ingress"][0]["from"]
    assert peers[0] == gateway[0]
    (own,) = [p["podSelector"]["matchExpressions"] for p in peers if "podSelector" in p]
    (names,) = [e["values"] for e in own if e["key"] == "app.kubernetes.io/name"]
    assert names == ["bmt-server-test", "bmt-trainer", "bmt-worker"]
    monitor = {"monitor": "pod", "existingSecret": "k"}
    closed = refused(networkPolicy={"from": gateway}, monitoring=monitor)
    assert "monitoring.from" in closed
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "mon"}}}
    opened = with_values(
        networkPolicy={"from": gateway}, monitoring=monitor | {"from": [prometheus]}
    )
    assert prometheus in one(opened, "NetworkPolicy")["spec"]["ingress"][0]["from"]
    # With a port of its own, Prometheus needs no access to the API.
    ports = {"monitor": "pod", "port": 9400, "from": [prometheus]}
    api, metrics = one(
        with_values(networkPolicy={"from": gateway}, monitoring=ports), "NetworkPolicy"
    )["spec"]["ingress"]
    assert prometheus not in api["from"]
    assert metrics["from"] == [prometheus]


@pytest.mark.found
@pytest.mark.parametrize("kind", ["LoadBalancer", "NodePort", "ClusterIP"])
def test_a_service_for_the_outside_is_reachable_from_there(kind):
    objects = with_values(service={"type": kind})
    (rule,) = one(objects, "NetworkPolicy")["spec"]["ingress"]
    assert ("from" not in rule) is (kind != "ClusterIP")
    ports = with_values(service={"type": kind}, monitoring={"monitor": "pod", "port": 9400})
    names = [p["name"] for p in one(ports, "Service")["spec"]["ports"]]
    # Figures need no key on that port, so it stays inside.
    assert ("metrics" in names) is (kind == "ClusterIP")
    refused_ranges = {"type": kind, "loadBalancerSourceRanges": ["10.0.0.0/8"]}
    if kind != "LoadBalancer":
        assert "LoadBalancer" in refused(service=refused_ranges)


@pytest.mark.parametrize(
    ("values", "ports"),
    [
        ({"registry": {"url": "redis://r"}}, [6379]),
        ({"registry": {"url": "rediss://user@r:6380/0?ssl_cert_reqs=none"}}, [6380]),
        ({"registry": {"url": "redis://[fd00::1]:6381"}}, [6381]),
        ({"registry": {"url": "redis+sentinel://a,b:26380,c/masks"}}, [6379, 26379, 26380]),
        ({"registry": {"url": "redis+cluster://a:7000,b:7001", "port": 7002}}, [7000, 7001, 7002]),
        ({"registry": {"url": "", "existingSecret": "whole", "port": 6390}}, [6390]),
        ({"registry": {"url": "", "port": 1}, "valkey": {"enabled": True}}, [6379]),
        ({"tracing": {"endpoint": "http://collector:4318/v1/traces"}}, [4318, 6379]),
        ({"tracing": {"endpoint": "https://collector/v1", "port": 0}}, [443, 6379]),
        ({"tracing": {"endpoint": "http://collector"}}, [4317, 6379]),
    ],
)
def test_egress_opens_the_ports_that_the_urls_name(values, ports):
    objects = with_values(**values, huggingface={"download": False}, model={"id": "/models/x"})
    egress = one(objects, "NetworkPolicy")["spec"] if "valkey" not in values else next(
        o["spec"] for o in objects if o["kind"] == "NetworkPolicy" and o["spec"]["egress"]
    )  # fmt: skip
    named_ports = {p["port"] for rule in egress["egress"] for p in rule["ports"]} - {53}
    assert sorted(named_ports) == ports


@pytest.mark.found
def test_ingress_and_http_route():
    objects = named("sentinel")
    ingress = one(objects, "Ingress")["spec"]
    assert ingress["ingressClassName"] == "nginx"
    (rule,) = ingress["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "masks", "port": {"name": "http"}}
    assert ingress["tls"][0]["hosts"] == [rule["host"]]
    route = one(named("gitops"), "HTTPRoute")["spec"]
    assert route["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
    assert route["rules"][0]["backendRefs"] == [{"name": "masks", "port": 8000}]
    assert route["rules"][0]["timeouts"] == {"request": "600s"}
    pooled = with_values(
        httpRoute={"enabled": True, "parentRefs": [{"name": "g"}]},
        inferencePool={"enabled": True, "endpointPicker": "picker"},
        monitoring={"port": 9400},
    )
    (backend,) = one(pooled, "HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    assert backend["kind"] == one(pooled, "InferencePool")["kind"] == "InferencePool"
    assert "parentRefs" in refused(httpRoute={"enabled": True})
    assert "ingress.hosts" in refused(ingress={"enabled": True})


@pytest.mark.parametrize(
    ("path", "root"), [("/", None), ("/masks", "/masks"), ("/a/b/", "/a/b"), ("/v1", None)]
)
def test_the_server_knows_its_path_at_the_edge(path, root):
    """Below a path of its own, such as `/v1`, it has no root path."""
    for edge in (
        {"ingress": {"enabled": True, "hosts": ["h"], "path": path}},
        {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}], "path": path}},
    ):
        pod = one(with_values(**edge), "Deployment", "masks")["spec"]["template"]["spec"]
        given = [a for a in pod["containers"][0]["args"] if a.startswith("--root-path")]
        assert given == ([f"--root-path={root}"] if root else [])


@pytest.mark.found
def test_routes_speak_https_to_pods_that_do():
    objects = named("gitops")
    policy = one(objects, "BackendTLSPolicy")["spec"]
    assert policy["targetRefs"] == [{"group": "", "kind": "Service", "name": "masks"}]
    assert policy["validation"]["hostname"] == "masks.inference.svc"
    assert policy["validation"]["caCertificateRefs"][0]["name"] == "masks-ca"
    tls = {"existingSecret": "cert"}
    route = {"enabled": True, "parentRefs": [{"name": "g"}]}
    assert "backendCA" in refused(tls=tls, httpRoute=route)
    assert not [o for o in with_values(httpRoute=route) if o["kind"] == "BackendTLSPolicy"]
    ingress = {"enabled": True, "hosts": ["a.b"]}
    assert "ingress.annotations" in refused(tls=tls, ingress=ingress)
    https = {"annotations": {"nginx.ingress.kubernetes.io/backend-protocol": "HTTPS"}}
    one(with_values(tls=tls, ingress=ingress | https), "Ingress")
    pool = {"enabled": True, "endpointPicker": "picker"}
    assert "by HTTP" in refused(tls=tls, inferencePool=pool, monitoring={"port": 9400})


@pytest.mark.found
def test_scaling_fails_loudly():
    """KEDA takes an empty answer as no load, unless it is told otherwise."""
    for scaler in ("keda", "autoscaling"):
        assert "monitoring.monitor" in refused(**{scaler: {"enabled": True}})
        bounds = {"enabled": True, "minReplicas": 9, "maxReplicas": 3}
        monitor = {"monitor": "pod", "port": 9400}
        assert "more than maxReplicas" in refused(**{scaler: bounds}, monitoring=monitor)
        assert "minimum" in refused(**{scaler: {"enabled": True, "minReplicas": 0}})
    for values in ("keda", "everything"):
        objects = named(values)
        name = one(objects, "Deployment")["metadata"]["name"]
        for trigger in one(objects, "ScaledObject")["spec"]["triggers"]:
            assert trigger["metadata"]["ignoreNullValues"] == "false"
            query = trigger["metadata"]["query"]
            # Series of both monitors have these labels; a PodMonitor's have no service.
            assert f'namespace="inference",pod=~"{name}-' in query
            assert "service=" not in query
    fallback = one(named("keda"), "ScaledObject")["spec"]["fallback"]
    assert fallback["behavior"] == "currentReplicasIfHigher"
    known = with_values(keda={"enabled": True}, monitoring={"selector": 'app="x"'})
    assert 'waiting{app="x"}' in json.dumps(one(known, "ScaledObject")).replace("\\", "")
    access = {"enabled": True, "triggerAuthentication": "prom", "authModes": "bearer"}
    authorized = with_values(keda=access, monitoring={"selector": 'a="b"'})
    for trigger in one(authorized, "ScaledObject")["spec"]["triggers"]:
        assert trigger["authenticationRef"] == {"name": "prom"}
        assert trigger["metadata"]["authModes"] == "bearer"
    assert "triggerAuthentication" in refused(keda={"authModes": "bearer"})


@pytest.mark.found
def test_the_adapter_has_a_rule_for_the_metric_of_the_autoscaler():
    (metric,) = one(named("hpa"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    (rule,) = yaml.safe_load((CHART / "files/prometheus-adapter.yaml").read_text())["rules"][
        "custom"
    ]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert rule["seriesQuery"].startswith("vllm:num_requests_waiting{")


@pytest.mark.found
def test_dashboards_of_two_releases_are_two():
    boards = []
    for release in ("masks", "masks-b"):
        objects = render(*VALKEY, "--set", "monitoring.dashboard=true", release=release)
        ((file, text),) = one(objects, "ConfigMap", "dashboard")["data"].items()
        board = json.loads(text)
        boards.append((file, board["uid"], board["title"]))
        for panel in board["panels"]:
            for target in panel["targets"]:
                assert f'pod=~"{release}-[' in target["expr"]
                assert "$namespace" not in target["expr"]
    assert all(one_value != other for one_value, other in zip(*boards, strict=True))


@pytest.mark.found
def test_metrics_are_closed_and_prometheus_has_a_key():
    """Whoever reached the Service read the names of all tenants' masks, by default."""
    for path in EXAMPLES:
        flags = server(example(path))["args"]
        assert "--metrics-open" not in flags, path
    for kind, name in (("ServiceMonitor", "keda"), ("PodMonitor", "hpa")):
        monitor = one(named(name), kind)["spec"]
        (endpoint,) = monitor.get("endpoints") or monitor["podMetricsEndpoints"]
        credentials = endpoint["authorization"]
        assert credentials["type"] == "Bearer"
        assert credentials["credentials"] == {"name": "metrics-key", "key": "api-key"}
    done = helm("template", str(CHART), "-f", str(MINIMAL), "--set=monitoring.monitor=service")
    assert "monitoring.existingSecret" in done.stderr
    pool = "--set=inferencePool.enabled=true,inferencePool.endpointPicker=picker"
    assert "monitoring.port" in helm("template", str(CHART), "-f", str(MINIMAL), pool).stderr


def test_the_port_of_metrics_is_named_everywhere():
    objects = named("gateway")
    assert "--metrics-port=9400" in server(objects)["args"]
    assert {"name": "metrics", "containerPort": 9400} in server(objects)["ports"]
    ports = {p["name"]: p["targetPort"] for p in one(objects, "Service")["spec"]["ports"]}
    assert ports == {"http": "http", "metrics": "metrics"}
    admitted = one(objects, "NetworkPolicy")["spec"]["ingress"]
    assert [i["ports"][0]["port"] for i in admitted] == ["http", "metrics"]
