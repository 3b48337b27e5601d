"""Masks on the Hugging Face Hub, or on another server with its routes (`HF_ENDPOINT`).

    from bmt_client import hub
    pushed = hub.push("math.bmt", "hf://acme/math")
    fetched = hub.pull("hf://acme/math@v1")

Needs huggingface_hub (`pip install 'bmt-adapters[hub]'`), which is imported on first use; neither
torch nor a bmt-server. The token is that of `hf auth login`, or HF_TOKEN.
"""

from .library import require_push
from .places import HubPlace, is_place, parse_place
from .transfer import Fetched, Pushed, pull, push

__all__ = [
    "Fetched",
    "HubPlace",
    "Pushed",
    "is_place",
    "parse_place",
    "pull",
    "push",
    "require_push",
]
