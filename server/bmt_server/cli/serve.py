"""`bmt-server serve`: prepares arguments and environment, then runs vLLM's own API server."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import bmt_core

from bmt_server.settings import QUEUED, MaskMode, Settings, SettingsError
from bmt_server.vllm_integration import cpu_environment, plugin
from bmt_server.vllm_integration.process_context import process_context

MIDDLEWARE = "bmt_server.api.middleware.RequestMiddleware"
# Seconds for running requests after SIGTERM, where --shutdown-timeout does not say.
DRAIN_S = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """What `serve` takes beside vLLM's own flags."""

    model: str
    registry: str = ""  # redis://, rediss://, unix://; empty: embedded Valkey in data_dir
    data_dir: Path = Path()
    mask_mode: MaskMode = "auto"
    mask_memory_mib: int = 1024
    mask_cache_gib: float = 10.0
    scatter_quantum_ms: float = 50.0
    scatter_max_wait_ms: float = 1000.0
    auth: bool = True
    metrics_open: bool = False
    max_sparsity: float = 0.05  # 25 times what SFT or GRPO deletes; bounds what an upload may cost
    hang_s: float = 50.0
    key_concurrency: int = 0
    key_rate: float = 0.0
    key_file: Path | None = None  # where the first key is written too, mode 0600


def serve(options: ServeOptions, vllm_flags: Sequence[str]) -> None:
    """Run the server until it is told to stop. Raises before vLLM starts where anything is off."""
    missing = list(plugin.missing_entry_points())
    if missing:
        raise SettingsError(
            f"vLLM would not find {', '.join(missing)}; reinstall bmt-adapters in this environment"
        )
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    args = _parse_vllm(options, vllm_flags)
    # Running requests end before vLLM is told, so it has nothing to wait for.
    drain, args.shutdown_timeout = float(args.shutdown_timeout or DRAIN_S), 0
    # Ours to keep, before vLLM sees a request (`api/admission.py`).
    queue, args.max_num_queued_reqs = args.max_num_queued_reqs, None
    if not options.auth and not _loopback(args.host):
        raise SettingsError(
            f"--no-auth was given and the server would listen on {args.host or 'all addresses'}; "
            "it is allowed on loopback only: add --host 127.0.0.1"
        )
    _prepare_kernel()
    data = options.data_dir
    data.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        registry = options.registry
        if not registry:
            from bmt_server.registry.embedded import EmbeddedValkey

            if (args.api_server_count or 1) > 1 or args.nnodes > 1:
                _say("the embedded registry serves this host alone; replicas need --registry")
            registry = stack.enter_context(EmbeddedValkey(data / "registry")).url
            _say(f"embedded registry at {registry}")
        stats = stack.enter_context(tempfile.TemporaryDirectory(prefix="bmt-stats-"))
        _say(f"reading the fingerprint of {args.model}")
        settings = Settings(
            model_id=options.model,
            model_path=args.model,
            fingerprint=bmt_core.fingerprint(args.model, cache_dir=data / "fingerprints"),
            gates=bmt_core.geometry(args.model),
            mask_mode=options.mask_mode,
            registry_url=registry,
            cache_dir=str(data / "masks"),
            stats_dir=stats,
            mask_cache_bytes=int(options.mask_cache_gib * (1 << 30)),
            mask_memory_bytes=options.mask_memory_mib << 20,
            scatter_quantum_s=options.scatter_quantum_ms / 1000,
            scatter_max_wait_s=options.scatter_max_wait_ms / 1000,
            max_sparsity=options.max_sparsity,
            auth=options.auth,
            metrics_open=options.metrics_open,
            key_concurrency=options.key_concurrency,
            key_rate=options.key_rate,
            queue=QUEUED if queue is None else queue,
            drain_s=drain,
            hang_s=options.hang_s,
        )
        if not settings.gates:
            raise SettingsError(
                f"{args.model} has no gate projections (*.mlp.gate_proj.weight); masks need a "
                "dense model of the Llama, Qwen or Mistral kind"
            )
        if options.auth:
            _first_key(settings, options.key_file)
        _prepare_cpu(settings, args, vllm_flags)
        _run(settings, args)


def _parse_vllm(options: ServeOptions, flags: Sequence[str]) -> Namespace:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from bmt_server.vllm_integration.checkpoint import checkpoint_folder
    from bmt_server.vllm_integration.platform_limits import eager_reason, float32_reason
    from bmt_server.vllm_integration.unsupported_flags import check

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="bmt-server serve"))
    args = parser.parse_args([*flags])
    check(args)
    args.model_tag = args.model = checkpoint_folder(options.model, args.revision)
    if args.model != options.model and not args.served_model_name:
        args.served_model_name = [options.model]
    args.enable_lora = True
    args.middleware = [*args.middleware, MIDDLEWARE]
    # Our middleware logs each request with its key and its mask (`api/access_log.py`).
    args.disable_uvicorn_access_log = True
    if (reason := eager_reason()) and not args.enforce_eager:
        _say(f"warning: {reason}; adding --enforce-eager")
        args.enforce_eager = True
    if args.dtype == "auto" and (reason := float32_reason()):
        _say(f"{reason}; adding --dtype float32")
        args.dtype = "float32"
    validate_parsed_serve_args(args)
    return args


def _prepare_kernel() -> None:
    """Compile the mask kernel before the engine waits for it, and say which one runs."""
    import torch
    from vllm.platforms import current_platform

    from bmt_server.worker.kernels.selection import choose_kernel

    kernel = choose_kernel(torch.device(current_platform.device_type), _say)
    _say(f"mask kernel: {kernel.name}, {kernel.description}")


def _first_key(settings: Settings, key_file: Path | None) -> None:
    from bmt_server.errors import BadRequest
    from bmt_server.registry.api_keys import ensure_first_key

    # Not for the engine's processes, which have no use for it.
    given = os.environ.pop("BMT_ADMIN_KEY", "").strip()
    try:
        key = asyncio.run(ensure_first_key(settings.registry_url, given))
    except BadRequest as error:
        raise SettingsError(f"BMT_ADMIN_KEY: {error}") from None
    if key is None:
        return
    # The one time that a key is shown: the registry keeps only its hash.
    print(f"API key (admin): {key}", flush=True)
    print("It is shown only now. Set it as BMT_API_KEY for bmt-client.", flush=True)
    if key_file is not None:
        handle = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(key + "\n")


def _prepare_cpu(settings: Settings, args: Namespace, flags: Sequence[str]) -> None:
    """Set what vLLM's CPU backend wants, for the engine alone: the registry runs by now."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    variables = cpu_environment.recommended(
        os.environ,
        weights_bytes=cpu_environment.weights_bytes(args.model, args.dtype),
        mask_bytes=settings.mask_memory_bytes,
        workers=args.tensor_parallel_size
        * args.pipeline_parallel_size
        * (args.data_parallel_size_local or args.data_parallel_size),
        kv_given=cpu_environment.sizes_kv_cache(flags),
    )
    cpu_environment.apply(os.environ, variables)
    for variable in variables:
        _say(f"{variable.name}={variable.value} ({variable.reason})")


def _run(settings: Settings, args: Namespace) -> None:
    settings.export_env()
    # An allow-list: no other plugin of the environment gets into this server.
    os.environ["VLLM_PLUGINS"] = f"{plugin.GENERAL},{plugin.ENDPOINTS}"
    os.environ.pop("VLLM_ALLOW_RUNTIME_LORA_UPDATING", None)
    os.environ.pop("VLLM_API_KEY", None)
    # Here, and not only in vLLM's loader, which logs a failing import and serves without it.
    plugin.register()
    from vllm.entrypoints.cli.serve import ServeSubcommand

    ServeSubcommand.cmd(args)
    # The engine's death reaches this process through its context: vLLM itself returns normally.
    if process_context().engine_died.is_set():
        _say("the engine died, so this server has ended; its log says why")
        raise SystemExit(1)


def _loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "0.0.0.0").is_loopback
    except ValueError:
        return False


def _say(text: str) -> None:
    print(f"bmt-server: {text}", file=sys.stderr, flush=True)
