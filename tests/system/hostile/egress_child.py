"""Run by test_egress in a network namespace of its own: all that leaves the host ends here.

    unshare --user --map-root-user --net python -m tests.operate.egress_child MODEL FOLDER

Prints a JSON object: for each stage of a server's life, the addresses that packets went to.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import bmt_core
import httpx2

from tests.support.masks import random_mask_of
from tests.support.served import Served

CONTROL = ("192.0.2.7", 53)  # of a block for documentation: no host has it
FETCH = (
    "http://169.254.169.254/latest/meta-data",
    "http://198.51.100.9/x.png",
    "https://example.com/x.png",
    "file:///etc/passwd",
)
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


class Wire:
    """The namespace's default route: a TUN device that we read, so that packets go nowhere."""

    def __init__(self) -> None:
        self._seen: list[str] = []
        self._device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._device, TUNSETIFF, struct.pack("16sH", b"out", IFF_TUN | IFF_NO_PI))
        for command in (
            "link set lo up",
            "addr add 10.99.0.1/24 dev out",
            "link set out up",
            "route add default dev out",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while packet := os.read(self._device, 65536):
            # IPv6's own router solicitations are the kernel's; who asks for a name uses IPv4 here.
            if packet[0] >> 4 == 4:
                self._seen.append(socket.inet_ntoa(packet[16:20]))

    def taken(self) -> list[str]:
        """Destinations of packets since the last call."""
        time.sleep(0.5)
        seen, self._seen = self._seen, []
        return sorted(set(seen))


def hostile(client: httpx2.Client) -> list[int]:
    """Requests that name an address in every place that somebody might read one from."""
    statuses = []
    for url in FETCH:
        image = {"type": "image_url", "image_url": {"url": url}}
        chat = {"model": "smol", "messages": [{"role": "user", "content": [image]}]}
        completion = {"model": "smol", "prompt": "x", "max_tokens": 1}
        response = {"model": "smol", "input": "x", "max_output_tokens": 1}
        for path, body in (
            ("/v1/chat/completions", chat),
            ("/v1/chat/completions", {**chat, "chat_template": f"{{% include '{url}' %}}"}),
            ("/v1/completions", {**completion, "model": url}),
            ("/v1/completions", {**completion, "lora_path": url, "documents": [{"url": url}]}),
            ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": url}),
            ("/v1/responses", {**response, "tools": [_tool(url)]}),
        ):
            statuses.append(client.post(path, json=body).status_code)
        statuses.append(client.get("/v1/models", headers={"X-Forwarded-Host": url}).status_code)
    return statuses


def _tool(url: str) -> dict[str, str]:
    return {"type": "mcp", "server_label": "x", "server_url": url}


def main(model: Path, folder: Path) -> None:
    wire = Wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        control.sendto(b"x", CONTROL)
    found: dict[str, list[str] | list[int]] = {"control": wire.taken()}
    # As a user starts it, not as the tests do.
    for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.pop(name, None)
    served = Served(model, folder, "--enforce-eager", "--dtype", "float32")
    try:
        found["start"] = wire.taken()
        with httpx2.Client(base_url=served.url, headers=served.headers, timeout=120) as client:
            mask = bmt_core.encode(random_mask_of(model, 0, 0.002))
            client.put("/v1/masks/m", content=mask).raise_for_status()
            asked = {"model": "m", "prompt": "The sun", "max_tokens": 8}
            client.post("/v1/completions", json=asked).raise_for_status()
            client.get("/metrics").raise_for_status()
            found["use"] = wire.taken()
            found["statuses"] = hostile(client)
            found["hostile"] = wire.taken()
    finally:
        served.stop()
    found["stop"] = wire.taken()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
