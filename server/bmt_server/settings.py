"""Settings of `bmt-server`: one frozen dataclass that every process of the server reads.

A field carries its help text, unit, bounds and command line flag (`setting_options.py`). The flags
of `bmt-server serve` (`cli/options.py`), docs/reference/settings.md and the schema of the Helm
chart's values derive from them.

vLLM starts its engine and worker processes itself, so the settings travel as JSON in one
environment variable. The variable also enables the plugin: in a vLLM that was started without it
the plugin does nothing.
"""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal

from bmt_server.environment_text import packed, unpacked
from bmt_server.setting_options import Option as Option
from bmt_server.setting_options import SettingsError as SettingsError

ENV = "BMT_SERVER_SETTINGS"
#: `Settings.chat_template` of a server without one.
NO_TEMPLATE = "none"

MaskMode = Literal["auto", "delta", "scatter"]


def _option(help: str, default: Any = MISSING, **more: Any) -> Any:
    return field(default=default, metadata={"option": Option(help=help, **more)})


def _budget(what: str, span: str, flag: str) -> Any:
    """Limit of requests or tokens over all servers of a registry."""
    text = f"Limit on the {what} in a window of {span}, over all servers; more get 429. 0: none."
    return _option(text, 0, unit=what.split()[0], flag=flag, least=0, most=10**11)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one server, shared by its API, engine and worker processes."""

    # Derived when the server starts.
    model_id: str = _option("Model as the user named it: a Hub id or a folder.")
    model_path: str = _option("Local folder of the checkpoint.")
    fingerprint: str = _option(
        "SHA-256 fingerprint of the checkpoint that masks name, 64 hex digits: of the served one, "
        "or of the one that it was quantized from."
    )
    gates: dict[str, tuple[int, int]] = _option(  # noqa: RUF009
        "Shapes [d_out, d_in] of the maskable tensors, by their names in the checkpoint."
    )
    chat_template: str = _option(
        "SHA-256 of the chat template that renders chats, 64 hex digits; `none` without one, empty "
        "if it is unknown.",
        "",
    )
    served_fingerprint: str = _option(
        "Fingerprint of the served checkpoint itself; empty if it is the one that masks name.", ""
    )
    precision: str = _option(
        "Precision of the served gate projections, as bf16 or int8; empty if it is unknown.", ""
    )
    quantized: bool = _option("The served gate projections are stored as codes.", False)
    cache_dir: str = _option("Folder of laid-out masks, addressed by content.", "")
    stats_dir: str = _option("Folder of statistics that workers write and /metrics reads.", "")

    registry_url: str = _option(
        "URL of Redis or Valkey: redis://, rediss://, unix://, redis+sentinel:// or "
        "redis+cluster://; `?prefix=` names one of several registries there. Default: an embedded "
        "Valkey that keeps the masks in the data folder.",
        "",
        flag="--registry",
        env="BMT_REGISTRY",
    )
    blobs_url: str = _option(
        "Object store for the masks' bytes: s3://bucket/prefix, gs://…, az://… or file:///folder. "
        "Credentials come from the environment. Default: Redis keeps them.",
        "",
        flag="--blobs",
        env="BMT_BLOBS",
    )
    files_url: str = _option(
        "Place of the files that clients upload for fine-tuning: a folder, s3://bucket/prefix, "
        "gs://… or az://…, with credentials of the environment. Empty: no files, and no jobs.",
        "",
        flag="--files",
        env="BMT_FILES",
    )
    max_file_bytes: int = _option(
        "Largest file of a client.",
        512 << 20,
        unit="bytes",
        flag="--max-file-mib",
        flag_unit="MiB",
        least=1 << 10,
    )
    tenant_files: int = _option(
        "Files that one tenant may keep; more get 413. 0: no limit.",
        1000,
        unit="files",
        flag="--tenant-files",
        least=0,
        most=100_000,
    )
    tenant_files_bytes: int = _option(
        "Bytes of files that one tenant may keep; more get 413. 0: no limit.",
        8 << 30,
        unit="bytes",
        flag="--tenant-files-mib",
        flag_unit="MiB",
        least=0,
    )
    train: bool = _option(
        "Run one `bmt-train worker` next to the server, as a process of the lowest priority that "
        "ends with it. Needs --files, and the packages of the trainer.",
        False,
        flag="--train",
        env="BMT_TRAIN",
    )
    train_flags: str = _option(
        "Flags of that worker, in one word, as in '--device cuda --max-length 2048'. By default it "
        "trains on the CPU, in the data folder.",
        "",
        flag="--train-flags",
        env="BMT_TRAIN_FLAGS",
    )
    import_from: str = _option(
        "Places that masks may be imported from, with commas: hf:// (the Hub), hf://org, "
        "hf://org/name, s3://bucket/prefix, https://host/prefix, https://*.example.com. Keys of "
        "scope `upload` read them with this server's credentials. Empty: no imports.",
        "",
        flag="--import-from",
        env="BMT_IMPORT_FROM",
    )
    import_networks: str = _option(
        "Networks of addresses that are not public and that imports may connect to, with commas, "
        "as in 10.1.0.0/16. Empty: public addresses alone.",
        "",
        flag="--import-networks",
        env="BMT_IMPORT_NETWORKS",
    )
    import_timeout_s: float = _option(
        "Time that an import's download may take as a whole.",
        45.0,
        unit="s",
        flag="--import-seconds",
        above=0,
        most=3600,
    )
    registry_replicas: int = _option(
        "Replicas of the registry that must have a change before it is acknowledged; else 503 "
        "`not_durable`. 0: a failover may lose the last changes.",
        0,
        unit="replicas",
        flag="--registry-replicas",
        least=0,
        most=16,
    )
    retention_keep_last: int = _option(
        "Newest versions of each name that stay; the servers remove older ones that neither "
        "`latest` nor an alias points at. A name's own rule (`bmt-client retention`) comes before "
        "it. 0: all stay.",
        0,
        unit="versions",
        flag="--retention-keep-last",
        least=0,
        most=1_000_000,
    )
    retention_older_than: str = _option(
        "Age, as in 30d, of versions that the servers remove, beyond those that "
        "--retention-keep-last keeps. Empty: any age.",
        "",
        flag="--retention-older-than",
        pattern=r"|[0-9]{1,6}[mhdw]",
    )
    family: str = _option(
        "Manifest of `bmt-server family`: the checkpoint that masks name, and those that were "
        "quantized from it, of which one is served.",
        "",
        flag="--family",
        env="BMT_FAMILY",
    )
    mask_mode: MaskMode = _option(  # noqa: RUF009
        "How masks are applied. delta: a correction of the output, any mix of masks per step. "
        "scatter: in place, one mask per step. auto: in place if a step has one mask, else delta.",
        "auto",
        flag="--mask-mode",
    )
    mask_memory_bytes: int = _option(
        "Memory for masks in each worker. A GPU's is allocated at start.",
        1 << 30,
        unit="bytes",
        flag="--mask-memory-mib",
        flag_unit="MiB",
        former_flag="--mask-memory",
        least=1 << 20,
    )
    mask_cache_bytes: int = _option(
        "Size limit of the cache of masks on the local disk, in the data folder.",
        10 << 30,
        unit="bytes",
        flag="--mask-cache-gib",
        flag_unit="GiB",
        least=1 << 20,
    )
    scatter_quantum_s: float = _option(
        "Mode scatter: length of a mask's turn if no other rule ends it.",
        0.05,
        unit="s",
        flag="--scatter-quantum-ms",
        flag_unit="ms",
        least=0,
    )
    scatter_max_wait_s: float = _option(
        "Mode scatter: longest wait of a runnable request for its mask's turn. Turns shrink to "
        "meet it, down to one step.",
        1.0,
        unit="s",
        flag="--scatter-max-wait-ms",
        flag_unit="ms",
        least=0.001,
    )
    # 25 times the sparsity of masks trained by SFT or GRPO; bounds the cost of an upload.
    max_sparsity: float = _option(
        "Largest share of the gate weights that a mask may set to zero.",
        0.05,
        unit="fraction",
        flag="--max-sparsity",
        former_flag="--max-density",
        above=0,
        most=1,
    )
    max_upload_bytes: int = _option(
        "Largest upload. 0: derived from the shapes of the gates.", 0, unit="bytes", least=0
    )
    no_auth: bool = _option(
        "Serve without API keys. Allowed only on a loopback address.", False, flag="--no-auth"
    )
    no_console: bool = _option(
        "Serve no console at /console. Without it, it is there for whoever has an API key, and on "
        "a server with --no-auth there is none.",
        False,
        flag="--no-console",
    )
    base_by_default: bool = _option(
        "Answer requests that name no model with the base model. Default: they get 400.",
        False,
        flag="--base-by-default",
    )
    strict_forced_tools: bool = _option(
        "Arguments of forced tools fit the tool's schema. False if --tool-strict-level is given.",
        True,
        vllm_flag="--tool-strict-level",
    )
    metrics_open: bool = _option(
        "Serve /metrics to anybody without a key: the names of all tenants' masks, and their "
        "traffic. Default: to keys of scope `metrics`.",
        False,
        flag="--metrics-open",
    )
    metrics_port: int = _option(
        "Port that serves /metrics and nothing else, without a key, to those whom the network "
        "lets reach it; on the address of --metrics-host. 0: none.",
        0,
        unit="port",
        flag="--metrics-port",
        least=0,
        most=65535,
    )
    metrics_host: str = _option(
        "Address of --metrics-port. Default: that of --host.", "", flag="--metrics-host"
    )
    max_mask_labels: int = _option(
        "Largest number of values of the `mask` label in metrics.", 100, unit="labels", least=0
    )
    usage_days: int = _option(
        "Days that requests and tokens by key, tenant and mask are kept for GET /v1/usage.",
        100,
        unit="days",
        flag="--usage-days",
        least=1,
        most=3650,
    )
    hang_s: float = _option(
        "/livez fails after the engine makes no progress on its requests for this long. 0: never.",
        50.0,
        unit="s",
        flag="--hang-seconds",
        least=0,
    )
    drain_s: float = _option(
        "Time that running requests have to end after SIGTERM.",
        30.0,
        unit="s",
        vllm_flag="--shutdown-timeout",
        least=0,
    )
    keep_alive_s: int = _option(
        "Time that an idle connection stays open. Must be longer than a proxy in front keeps it: "
        "60 s for nginx and AWS, 600 s for Google. Else a request now and then meets a connection "
        "that closes, and the proxy answers 502.",
        120,
        unit="s",
        flag="--keep-alive-seconds",
        env="VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
        least=1,
    )
    key_concurrency: int = _option(
        "Concurrent requests of one API key in each API process; more get 429. 0: no limit.",
        0,
        unit="requests",
        flag="--key-concurrency",
        least=0,
    )
    key_rate: float = _option(
        "Rate of requests of one API key in each API process; more get 429. 0: no limit.",
        0.0,
        unit="requests/s",
        flag="--key-rate",
        least=0,
    )
    key_requests_per_minute: int = _budget(
        "requests of one API key", "a minute", "--key-requests-per-minute"
    )
    key_tokens_per_minute: int = _budget(
        "tokens of one API key", "a minute", "--key-tokens-per-minute"
    )
    key_tokens_per_day: int = _budget("tokens of one API key", "24 hours", "--key-tokens-per-day")
    key_tokens_per_month: int = _budget(
        "tokens of one API key", "30 days", "--key-tokens-per-month"
    )
    tenant_requests_per_minute: int = _budget(
        "requests of all keys of one tenant", "a minute", "--tenant-requests-per-minute"
    )
    tenant_tokens_per_minute: int = _budget(
        "tokens of all keys of one tenant", "a minute", "--tenant-tokens-per-minute"
    )
    tenant_tokens_per_day: int = _budget(
        "tokens of all keys of one tenant", "24 hours", "--tenant-tokens-per-day"
    )
    tenant_tokens_per_month: int = _budget(
        "tokens of all keys of one tenant", "30 days", "--tenant-tokens-per-month"
    )
    tenant_storage_bytes: int = _option(
        "Bytes of different files that the masks of a tenant may have; more get 413. 0: no limit.",
        0,
        unit="bytes",
        flag="--tenant-storage-mib",
        flag_unit="MiB",
        least=0,
    )
    tenant_versions: int = _option(
        "Versions of masks that one tenant may have; more get 413. 0: no limit.",
        0,
        unit="versions",
        flag="--tenant-versions",
        least=0,
    )
    budget_outage: Literal["allow", "refuse"] = _option(
        "Requests of keys and tenants with limits over all servers, while the registry is away. "
        "allow: they are served without these limits, as masks are served without the registry. "
        "refuse: they get 503.",
        "allow",
        flag="--budget-outage",
    )
    shadow_sequences: int = _option(
        "Sequences of copies for shadows of aliases that may run at a time in each API process; "
        "further copies are dropped and counted. 0: none is sent.",
        8,
        unit="sequences",
        flag="--shadow-sequences",
        least=0,
        most=4096,
    )
    batch_sequences: int = _option(
        "Sequences of batches' lines that may run at a time in each API process while no other "
        "request runs; a quarter of them while some do, and none beyond this number together with "
        "them. 0: this server runs no batches.",
        16,
        unit="sequences",
        flag="--batch-sequences",
        least=0,
        most=4096,
    )
    queue: int = _option(
        "Sequences that may run or wait in all API processes together; more get 503.",
        2048,
        unit="sequences",
        vllm_flag="--max-num-queued-reqs",
        least=1,
    )

    def __post_init__(self) -> None:
        for name, option, kind in options():
            object.__setattr__(self, name, option.check(name, getattr(self, name), kind))

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Parse the JSON of `to_json`. Unknown keys are errors: two versions must not mix."""
        raw = json.loads(text)
        unknown = set(raw) - {f.name for f in fields(cls)}
        if unknown:
            raise SettingsError(
                f"unknown settings {sorted(unknown)}: all processes must run the same version"
            )
        raw["gates"] = {name: (int(r), int(c)) for name, (r, c) in raw["gates"].items()}
        return cls(**raw)

    def export_env(self) -> None:
        """Set the environment variable that all child processes read.

        Raises SettingsError if a model has too many experts for one variable.
        """
        os.environ[ENV] = packed(self.to_json())

    @classmethod
    def from_env(cls) -> Settings | None:
        """The settings of this process, or None if it was not started for masks."""
        text = os.environ.get(ENV)
        return cls.from_json(unpacked(text)) if text else None


def options() -> Iterator[tuple[str, Option, Any]]:
    """Each field's name, option and type, in order."""
    kinds = typing.get_type_hints(Settings)
    for item in fields(Settings):
        yield item.name, item.metadata["option"], kinds[item.name]


def check(values: Mapping[str, Any]) -> None:
    """Check some settings before the others are known. Raises SettingsError."""
    for name, option, kind in options():
        if name in values:
            option.check(name, values[name], kind)
