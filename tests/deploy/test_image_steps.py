"""Programs that run in images: the check of health, and the step that makes them small."""

from __future__ import annotations

import http.server
import importlib.util
import shutil
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trustme

from tests.support.programs import ROOT

STEPS = ROOT / "deploy/docker/steps"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"step_{name}", STEPS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Handler(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status if self.path == "/livez" else 404)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(("status", "alive"), [(200, True), (503, False)])
def test_health_by_http_and_by_tls(tls, status, alive):
    handler = type("Answers", (Handler,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            trustme.CA().issue_cert("bmt.example").configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = load("healthcheck").alive(server.server_port)
        server.shutdown()
    assert found is alive


def test_a_server_that_does_not_listen_is_not_alive():
    done = subprocess.run([sys.executable, STEPS / "healthcheck.py", "1"], check=False)
    assert done.returncode == 1


def package(packages: Path, name: str, code: str = "") -> None:
    """An installed package of one module."""
    (packages / name).mkdir()
    (packages / name / "__init__.py").write_text(code)
    info = packages / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "INSTALLER").write_text("pip\n")
    records = [f"{name}/__init__.py", f"{info.name}/METADATA", f"{info.name}/RECORD"]
    (info / "RECORD").write_text("".join(f"{record},,\n" for record in records))


@pytest.fixture
def environment(tmp_path) -> Path:
    venv = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bmt")]
    subprocess.run(venv, check=True)
    (packages,) = (tmp_path / "bmt").glob("lib/python3*/site-packages")
    for name, code in (
        ("torch", ""),
        ("triton", ""),
        ("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')"),
        ("kept", ""),
    ):
        package(packages, name, code)
    for name in (
        "torch/bin/torch_shm_manager",
        "torch/bin/test_api",
        "torch/test/big",
        "kept/tests/__init__.py",
        "kept/tests/deep/test_a.py",
        "kept/libkept.a",
        "kept/inner/tests/model.py",
        "transformers/models/llama/__pycache__/modeling_llama.cpython-311.pyc",
        "transformers/models/llama/modeling_llama.py",
        "transformers/__pycache__/trainer.cpython-311.pyc",
        "nvidia/cu13/bin/nvcc",
        "nvidia/cu13/lib/libcudadevrt.a",
        "nvidia/cu13/lib/libcudart.so.13",
    ):
        file = packages / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    return tmp_path / "bmt"


@pytest.mark.skipif(shutil.which("strip") is None, reason="binutils are not installed")
def test_an_environment_keeps_what_runs(environment):
    done = subprocess.run(
        [
            *(sys.executable, str(STEPS / "slim.py"), str(environment), "--without", "triton"),
            *("--if-imported", "torchvision", "kept", "--cuda-links"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # What is left out because it does not fit is said, with the reason.
    assert "torchvision is left out: it cannot be imported" in done.stdout
    assert "torchvision::nms does not exist" in done.stdout
    (packages,) = environment.glob("lib/python3*/site-packages")
    left = {str(path.relative_to(packages)) for path in packages.rglob("*") if path.is_file()}
    assert {
        "torch/__init__.py",
        "torch/bin/torch_shm_manager",
        "kept/__init__.py",
        "kept/inner/tests/model.py",
        "transformers/models/llama/modeling_llama.py",
        "transformers/__pycache__/trainer.cpython-311.pyc",
        "nvidia/cu13/lib/libcudadevrt.a",
    } <= left
    gone = ("triton/", "torchvision/", "torch/test", "torch/bin/test", "kept/tests/", "kept/lib")
    assert not [path for path in left if path.startswith(gone)]
    assert not [path for path in left if path.startswith("transformers/models/llama/__py")]
    cuda = environment / "cuda"
    assert (cuda / "bin/nvcc").exists()
    assert (cuda / "lib64/libcudart.so").exists()


def test_links_need_one_toolkit(environment):
    (packages,) = environment.glob("lib/python3*/site-packages")
    shutil.copytree(packages / "nvidia/cu13", packages / "nvidia/cu12")
    with pytest.raises(SystemExit, match="there are 2"):
        load("slim").link_cuda(environment, packages)
    assert not (environment / "cuda").exists()
