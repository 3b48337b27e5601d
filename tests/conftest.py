"""Fixtures of all packages: real model, one real server, an environment without user settings."""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.collector import ENV as TRACES
from tests.support.collector import Collector
from tests.support.served import Served, Valkey

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "demo"
KEPT_SIGNALS = [
    getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2")
]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")  # as bmt-server sets it, see cpu_environment.py
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# Importing TRL sets it to ERROR where it is not set, and servers started later would inherit that.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
# Shells let what they start in the background ignore Ctrl-C, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What the developer's own shell is set up for is not the tests': a registry, a server, a key.
for name in ("BMT_URL", "BMT_API_KEY", "BMT_REGISTRY", "BMT_DATA_DIR", "BMT_SERVER_SETTINGS"):
    os.environ.pop(name, None)
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"


# Last, after plugins that shuffle.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Engines last, because what fails fast should fail first; in parallel, engines first."""
    first = hasattr(config, "workerinput")
    items.sort(key=lambda item: (item.get_closest_marker("engine") is not None) != first)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """In parallel, one process takes the files with engines, which share one server.

    The other processes take the other files, each as a whole. (`--dist loadgroup` would do, but
    pytest-xdist 3.8 does not see the groups of pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "engines" if has_engines(file) else file

    return Files(config, log)


@pytest.fixture(autouse=True)
def handlers_of_signals() -> Iterator[None]:
    """A program that a test runs in this process leaves its handlers to no other test."""
    before = {one: signal.getsignal(one) for one in KEPT_SIGNALS}
    yield
    for one, handler in before.items():
        if handler is not None and signal.getsignal(one) is not handler:
            signal.signal(one, handler)


@functools.cache
def has_engines(file: str) -> bool:
    return "mark.engine" in (ROOT / file).read_text()


@pytest.fixture(scope="session")
def smol() -> Path:
    """The real model, SmolLM2-135M-Instruct, as a bf16 checkpoint."""
    spec = importlib.util.spec_from_file_location("bmt_demo_model", DEMO / "model.py")
    assert spec is not None
    assert spec.loader is not None
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    return Path(model.checkpoint())


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """The registry of `server`. A test that ends it starts it again."""
    store = Valkey(tmp_path_factory.mktemp("registry"))
    store.start()
    yield store
    store.close()


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Collector of the traces that `server` sends."""
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(
    smol: Path,
    registry: Valkey,
    collector: Collector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """`bmt-server serve` on the real model, for every test that needs no flags of its own.

    In float32, so that answers can be compared; each test gives its masks names of their own.
    """
    served = Served(
        smol,
        tmp_path_factory.mktemp("served"),
        *("--enforce-eager", "--dtype", "float32", "--max-num-seqs", "32"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        "--enable-prompt-tokens-details",
        *("--otlp-traces-endpoint", collector.endpoint, "--logging-config.formatter", "json"),
        registry=registry.url,
        env=TRACES,
    )
    yield served
    assert served.stop() in (0, -15), served.log.read_text()[-2000:]
