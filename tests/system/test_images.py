"""Images, built and run as a strict platform runs them, without a daemon of containers.

Debian's buildah builds, on a base that debootstrap makes; runc runs, with a read-only root, no
capability and no network but loopback, as the image's user and as one that a platform chose.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bmt_server.registry.api_keys import SCOPES, make_key
from bmt_server.vllm_integration.versions.check import TESTED

from tests.support.containers.base import make_base
from tests.support.containers.packages import pip_options
from tests.support.containers.run import Container, Network, owned
from tests.support.containers.store import Image, Store
from tests.support.scenarios.figures import Figures

pytestmark = [pytest.mark.operate, pytest.mark.timeout(5400)]

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy" / "docker"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE = "localhost/bmt-base"
PROGRAMS = ("buildah", "debootstrap", "runc", "ip")
# The image's user, and one as OpenShift chooses it: no entry in /etc/passwd, group 0.
USERS = {"10001": None, "random": (1_000_730_000, 0)}
GPU_DISK_GB = 40


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """Storage with the base image."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.geteuid() != 0:
        pytest.skip("images are built and run as root")
    if missing:
        pytest.skip(
            f"not installed: {', '.join(missing)}; on Debian: apt-get install buildah "
            "debootstrap runc iproute2"
        )
    # Not pytest's folder: mounts in it outlive the test where the test is killed.
    folder = Path(os.environ.get("BMT_IMAGES_DIR", "/var/tmp/bmt-images"))
    kept = Store(folder)
    (suite,) = re.findall(r"^ARG BASE=\S+-slim-(\w+)@", dockerfile("trainer"), re.MULTILINE)
    if not kept.has(BASE):
        make_base(kept, suite, BASE, folder)
    yield kept
    if "BMT_IMAGES_DIR" not in os.environ:
        kept.close()


def dockerfile(name: str) -> str:
    return (DOCKER / f"{name}.Dockerfile").read_text()


def built(store: Store, name: str, figures: Figures, **arguments: str) -> Image:
    """The image, with the time and size of its build as figures."""
    tag = f"localhost/bmt-{name.replace('.', '-')}"
    start = time.monotonic()
    if not store.has(tag):
        options = pip_options(store.folder)
        given = {"BASE": BASE, "REVISION": "test", **arguments}
        given.update(torch_index(options))
        print(store.build(DOCKER / f"{name}.Dockerfile", ROOT, tag, given, options=options))
        figures.record("built_in", time.monotonic() - start, "s", size="once")
    image = store.mount(tag)
    files = (path.lstat().st_size for path in image.root.rglob("*") if path.is_file())
    figures.record("size", sum(files) / 1e9, "GB", "", size="files of the image")
    return image


def torch_index(options: list[str]) -> dict[str, str]:
    """Builds of torch for CPUs from the folder of wheels that pip is set up with, if it is."""
    settings = Path(options[1].rpartition("=")[2]).read_text()
    found = re.search(r"^find-links = (/\S+)", settings, re.MULTILINE)
    return {"TORCH_INDEX": f"file://{found.group(1)}"} if found else {}


@pytest.fixture(scope="module")
def server_image(store) -> Image:
    figures = Figures("image_server_cpu", "images")
    image = built(store, "server.cpu", figures)
    figures.end()
    return image


@pytest.fixture(scope="module")
def trainer_image(store) -> Image:
    figures = Figures("image_trainer", "images")
    image = built(store, "trainer", figures, DEVICE="cpu")
    figures.end()
    return image


@pytest.fixture(scope="module")
def models(smol, tmp_path_factory) -> Path:
    """The Hub's cache as `hf download` leaves it, so that the model is known by its id."""
    folder = tmp_path_factory.mktemp("models")
    place = folder / "hub" / f"models--{MODEL.replace('/', '--')}"
    revision = "0" * 40
    shutil.copytree(smol, place / "snapshots" / revision)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(revision)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for parent in folder.parents:
        # pytest's folders are of its user alone, and runc opens mounts as the container's.
        if parent.stat().st_uid == os.geteuid() and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return folder


@pytest.mark.parametrize("user", USERS)
def test_a_mask_goes_from_the_trainer_to_the_server(
    user, server_image, trainer_image, models, tmp_path
):
    """Chat, training, upload and a chat with the mask; structured output; the stop."""
    figures = Figures("image_server_cpu" if user == "10001" else "image_random_user", "images")
    chosen = USERS[user]
    uid_gid = chosen or (10001, 10001)
    network = Network()
    key = make_key(SCOPES)

    def container(image: Image, name: str, **env: str) -> Container:
        return Container(
            image,
            tmp_path / name,
            network,
            user=chosen,
            volumes={
                "/scratch": owned(tmp_path / name / "scratch", uid_gid, by_group=bool(chosen))
            },
            read_only={"/models": models},
            env={"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", **env},
        )

    server = container(server_image, "server", BMT_ADMIN_KEY=key)
    trainer = container(trainer_image, "trainer", BMT_URL="http://127.0.0.1:8000", BMT_API_KEY=key)
    log = tmp_path / "server.log"
    process = None
    try:
        for image in (server, trainer):
            confined(image, uid_gid)
        doctor = server.run("doctor")
        assert doctor.returncode == 0, doctor.stdout
        process = server.start(
            *("serve", MODEL, "--served-model-name", "smol", "--host", "127.0.0.1"),
            *("--max-model-len", "512", "--enforce-eager"),
            log=log,
        )
        start = time.monotonic()
        while network.get("/readyz")[0] != 200:
            assert process.poll() is None, f"the server ended:\n{log.read_text()[-4000:]}"
            assert time.monotonic() - start < 1200, log.read_text()[-4000:]
            time.sleep(1)
        figures.record("ready_in", time.monotonic() - start, "s", size=f"user {user}")
        health = re.findall(r'^ +CMD \["python", "(\S+)"\]', dockerfile("server.cpu"), re.MULTILINE)
        assert server.execute(["python", *health]).returncode == 0
        chat = ["bmt-client", "chat", "--max-tokens", "8", "--temperature", "0"]
        plain = trainer.execute([*chat, "smol", "Sort: 3 1 2"])
        assert plain.returncode == 0, plain.stdout
        assert plain.stdout.strip()
        flags = "--steps 1 --train-examples 16 --calibration-prompts 16 --heldout 2"
        trained = trainer.run(
            *("sft", "--model", MODEL, "--dataset", "task:sort-numbers"),
            *("--output", "/scratch/sorted.bmt", "--max-new-tokens", "4", *flags.split()),
            timeout=1800,
        )
        assert trained.returncode == 0, trained.stdout[-3000:]
        uploaded = trainer.execute(["bmt-client", "upload", "/scratch/sorted.bmt"])
        assert uploaded.returncode == 0, uploaded.stdout
        masked = trainer.execute([*chat, "sorted", "Sort: 3 1 2"])
        assert masked.returncode == 0, masked.stdout
        assert masked.stdout.strip()
        # Grammars run without Triton here.
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        status, answer = network.post(
            "/v1/chat/completions",
            {
                "model": "sorted",
                "messages": [{"role": "user", "content": "Give a number as JSON."}],
                "max_tokens": 24,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "number", "schema": schema},
                },
            },
            key,
        )
        assert status == 200, answer
        assert answer.find("{") >= 0
        figures.record("answers", status, "status", "== 200", size=f"with a mask, user {user}")
    finally:
        code = stop(process) if process else -1
        network.close()
    figures.record("exit_code", code, "code", "== 0", size=f"after SIGTERM, user {user}")
    figures.end()


def confined(container: Container, user: tuple[int, int]) -> None:
    """A failure where the container could do more than a strict platform allows."""
    script = (
        "import os; print(os.getuid(), os.getgid(), os.listdir('/sys/class/net'))\n"
        "import getpass, pathlib; getpass.getuser(); pathlib.Path.home()\n"
        "for place in ('/', '/opt/bmt', '/usr/local', '/scratch', '/tmp'):\n"
        "    print(place, os.access(place, os.W_OK))\n"
    )
    done = container.execute(["python", "-c", script])
    assert done.returncode == 0, done.stdout
    first, *places = done.stdout.strip().splitlines()
    assert first == f"{user[0]} {user[1]} ['lo']"
    written = ["/ False", "/opt/bmt False", "/usr/local False", "/scratch True", "/tmp True"]
    assert places == written


def stop(process) -> int:
    """SIGTERM, which runc hands on, and the exit code."""
    process.terminate()
    try:
        return process.wait(120)
    except BaseException:
        process.kill()
        raise


def test_server_for_gpus(store, tmp_path):
    """All packages but FlashInfer's compiled kernels; its compiler makes machine code."""
    free = shutil.disk_usage(store.folder).free / 1e9
    if not store.has("localhost/bmt-server-gpu") and free < GPU_DISK_GB:
        pytest.skip(f"{free:.0f} GB of disk are free, and the build needs {GPU_DISK_GB}")
    figures = Figures("image_server_gpu", "images")
    image = built(store, "server.gpu", figures, FLASHINFER_KERNELS="none")
    network = Network()
    scratch = owned(tmp_path / "scratch", (10001, 10001))
    (scratch / "twice.cu").write_text("__global__ void twice(float *x) { x[threadIdx.x] *= 2; }\n")
    container = Container(image, tmp_path, network, volumes={"/scratch": scratch})
    try:
        script = (
            "import vllm, torch, shutil, os\n"
            "from vllm.utils.flashinfer import has_flashinfer\n"
            "print(vllm.__version__, torch.version.cuda, has_flashinfer(), shutil.which('ninja'))\n"
        )
        done = container.execute(["python", "-c", script])
        assert done.returncode == 0, done.stdout[-3000:]
        version, cuda, flashinfer, ninja = done.stdout.strip().splitlines()[-1].split()
        assert tuple(map(int, version.split(".")[:2])) == max(TESTED)
        assert cuda.startswith("13.")
        assert flashinfer == "True", done.stdout
        assert ninja.startswith("/opt/bmt/")
        nvcc = ["/opt/bmt/cuda/bin/nvcc", "-arch=sm_90", "--shared", "-Xcompiler", "-fPIC"]
        made = container.execute([*nvcc, "-lcudart", "twice.cu", "-o", "twice.so"])
        assert made.returncode == 0, made.stdout
        figures.record("compiles", made.returncode, "code", "== 0", size="nvcc for sm_90")
    finally:
        network.close()
    figures.end()
