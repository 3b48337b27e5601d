"""Client of a bmt-server: upload, version, alias and fetch masks, and query masked models.

    from bmt_client import BmtClient
    with BmtClient("http://127.0.0.1:8000", api_key="bmt_...") as client:
        version = client.upload("math.bmt", alias=["prod"])
        client.openai().chat.completions.create(model="math:prod", messages=[...])

The import needs neither torch nor vLLM; httpx2 and openai are imported on first use.
"""

from ._async_client import AsyncBmtClient
from ._client import BmtClient
from ._errors import (
    AuthenticationError,
    BmtClientError,
    Conflict,
    Invalid,
    NotFound,
    PermissionDenied,
    ProtocolError,
    RateLimited,
    TooLarge,
    Unavailable,
    UsageError,
)
from ._keys import ApiKey, NewApiKey
from ._models import (
    Alias,
    BaseModelInfo,
    KeyInfo,
    MaskInfo,
    ModelInfo,
    Page,
    Retention,
    Upload,
    Version,
)
from ._tuning.files import FileInfo
from ._tuning.jobs import JobEvent, JobInfo
from ._usage.counts import Usage, UsageRow
from ._usage.limits import Limits, LimitTable

__all__ = [
    "Alias",
    "ApiKey",
    "AsyncBmtClient",
    "AuthenticationError",
    "BaseModelInfo",
    "BmtClient",
    "BmtClientError",
    "Conflict",
    "FileInfo",
    "Invalid",
    "JobEvent",
    "JobInfo",
    "KeyInfo",
    "LimitTable",
    "Limits",
    "MaskInfo",
    "ModelInfo",
    "NewApiKey",
    "NotFound",
    "Page",
    "PermissionDenied",
    "ProtocolError",
    "RateLimited",
    "Retention",
    "TooLarge",
    "Unavailable",
    "Upload",
    "Usage",
    "UsageError",
    "UsageRow",
    "Version",
]
