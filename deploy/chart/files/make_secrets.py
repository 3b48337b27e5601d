"""Create the Secrets named in WANTED, a JSON list of {name, key}, unless they exist.

Runs in a pod, with the standard library alone. A Secret that exists is never changed; one without
its key is an error.
"""

import base64
import json
import os
import secrets
import ssl
import urllib.error
import urllib.request
import zlib

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ACCOUNT = os.environ.get("ACCOUNT", "/account")


def admin_key():
    """A key as `bmt-server keys generate` makes it: 32 random characters and a checksum of 6."""
    head = "bmt_adm_" + "".join(secrets.choice(ALPHABET) for _ in range(32))
    number, digits = zlib.crc32(head.encode()), ""
    for _ in range(6):
        number, rest = divmod(number, 62)
        digits += ALPHABET[rest]
    return head + digits


def read(name):
    with open(f"{ACCOUNT}/{name}") as file:
        return file.read().strip()


def call(method, path, body=None):
    """Response of the cluster's API as JSON. Raises HTTPError."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(
        f"https://{host}:{port}/api/v1/namespaces/{read('namespace')}/{path}",
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"Authorization": f"Bearer {read('token')}", "Content-Type": "application/json"},
    )
    context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    with urllib.request.urlopen(request, timeout=30, context=context) as response:
        return json.load(response)


for wanted in json.loads(os.environ["WANTED"]):
    name, key = wanted["name"], wanted["key"]
    value = admin_key() if key == "admin-key" else secrets.token_hex(32)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode()},
    }
    try:
        call("POST", "secrets", secret)
        print(f"Secret {name} is new", flush=True)
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise SystemExit(f"Secret {name}: {error} {error.read().decode()[:500]}") from None
        if not call("GET", f"secrets/{name}").get("data", {}).get(key):
            raise SystemExit(
                f"Secret {name} exists without the key {key}; add it, or delete it"
            ) from None
        print(f"Secret {name} exists", flush=True)
