"""`bmt-server serve`: prepare settings and environment, then run vLLM's own API server."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import bmt_core
import typer
from bmt_core.optional_packages import fix, leave_out
from typer.core import TyperCommand

from bmt_server.cli.common import complete_url, fail, say
from bmt_server.cli.family import kept_family
from bmt_server.cli.options import with_settings
from bmt_server.cli.places import check_places, files_place, require_loopback
from bmt_server.ipc.stats_folder import stats_folder
from bmt_server.quantization.family import identify
from bmt_server.settings import Settings, SettingsError
from bmt_server.training.plan import check_training
from bmt_server.vllm_integration import engine_flags, plugin, process_lifetime
from bmt_server.vllm_integration.arguments.known import given, unknown_flag, unknown_key
from bmt_server.vllm_integration.arguments.root_path import checked_root_path
from bmt_server.vllm_integration.process_context import process_context
from bmt_server.vllm_integration.versions.check import VllmVersionError, check_version

MIDDLEWARE = "bmt_server.api.middleware.RequestMiddleware"


class VllmCommand(TyperCommand):
    """Command that passes unknown options on to vLLM.

    `-h` means help only as a whole word: as a declared option it would also match vLLM's `-dph`
    and `-hd`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["--help" if word == "-h" else word for word in args])


@with_settings
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Base model: a Hub id or a folder.")],
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="BMT_DATA_DIR",
            help="Folder of the embedded registry and of the mask cache. Default: bmt-server in "
            "the user's data folder.",
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="File to write the first API key to, readable by its owner only."),
    ] = None,
    **settings: Any,
) -> None:
    """Serve MODEL with masks."""
    wrong = unknown_flag(context.args, own=_own_flags(context)) or unknown_key(context.args)
    if wrong:
        fail(wrong, code=2)
    try:
        run(model, context.args, data_dir or _default_data_dir(), key_file, settings)
    except _user_errors() as error:
        fail(str(error))


def _own_flags(context: typer.Context) -> list[str]:
    return [name for parameter in context.command.params for name in parameter.opts]


def run(
    model: str,
    vllm_flags: Sequence[str],
    data_dir: Path,
    key_file: Path | None,
    chosen: dict[str, Any],
) -> None:
    """Run the server until it is stopped. `chosen`: fields of `Settings` given by flags.

    Raises before vLLM starts if flags, host, registry or checkpoint do not fit.
    """
    from bmt_server.api.metrics.port import check_port
    from bmt_server.cli.first_key import check_place, check_url, contact_registry
    from bmt_server.cli.training import address, worker
    from bmt_server.sources.importer import read_sources

    if chosen["registry_url"]:
        check_url(chosen["registry_url"])
    if chosen["blobs_url"]:
        check_place(chosen["blobs_url"])
    chosen = {**chosen, "files_url": files_place(chosen["files_url"], chosen["blobs_url"])}
    read_sources(chosen["import_from"], chosen["import_networks"])
    chosen = {**chosen, "registry_url": complete_url(chosen["registry_url"])}
    check_places(data_dir, key_file)
    if chosen["train"]:
        check_training(chosen["files_url"], chosen["train_flags"])
    # Before variables are set for the engine.
    environment = dict(os.environ)
    if chosen["no_auth"] and not given("--config", vllm_flags):
        require_loopback(given("--host", vllm_flags))
    process_lifetime.ignore_signals()
    process_lifetime.mark_root()
    _require_plugin()
    _leave_out_parts()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    check_version(lambda line: say(f"warning: {line}"))
    args = _parse_vllm_flags(model, vllm_flags)
    if chosen["train"]:
        address(args)
    data_dir.mkdir(parents=True, exist_ok=True)
    vars(args).update(engine_flags.for_mode(chosen["mask_mode"], args.additional_config))
    chosen = {**chosen, **_take_over_flags(args)}
    chosen["metrics_host"] = chosen["metrics_host"] or args.host or ""
    check_port(chosen["metrics_host"], chosen["metrics_port"])
    from bmt_server.vllm_integration.chat_template import served_digest
    from bmt_server.vllm_integration.checkpoint import served_gates
    from bmt_server.vllm_integration.start.experts import check_experts
    from bmt_server.vllm_integration.start.quantized_bases import check_quantized

    gates = served_gates(args.model)
    check_experts(args.model, gates.shapes, mode=chosen["mask_mode"], args=args)
    check_quantized(args.model, gates, mode=chosen["mask_mode"], dtype=args.dtype)
    chosen |= {"gates": gates.shapes, "precision": gates.precision, "quantized": gates.quantized}
    chosen["chat_template"] = served_digest(args.chat_template, args.tokenizer or args.model)
    if chosen["no_auth"]:
        require_loopback(args.host)
    _prepare_kernel()
    with ExitStack() as stack:
        chosen["registry_url"] = chosen["registry_url"] or _embedded_registry(stack, data_dir, args)
        chosen["stats_dir"] = stack.enter_context(stats_folder())
        settings = _build_settings(model, args.model, data_dir, chosen)
        contact_registry(
            settings.registry_url, key_file, no_auth=settings.no_auth, blobs=settings.blobs_url
        )
        if settings.train:
            stack.enter_context(worker(settings, args, data_dir, environment))
        _prepare_cpu(settings, args, vllm_flags)
        _run_vllm(settings, args)


def _require_plugin() -> None:
    if missing := list(plugin.missing_entry_points()):
        raise SettingsError(
            f"vLLM would not find {', '.join(missing)}; reinstall bmt-adapters in this environment"
        )


def _leave_out_parts() -> None:
    """Go on without parts of vLLM that cannot be imported, and say which and how to mend them."""
    if found := leave_out():
        say(
            f"warning: left out, because they cannot be imported: {', '.join(map(str, found))}; "
            f"most models of text need none of them; to mend: {fix(found)}"
        )


def _parse_vllm_flags(model: str, flags: Sequence[str]) -> Namespace:
    """vLLM's arguments for `model`, with the flags that masks and this host need."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from bmt_server.vllm_integration.checkpoint import checkpoint_folder, load_format
    from bmt_server.vllm_integration.platform_limits import eager_reason, float32_reason
    from bmt_server.vllm_integration.start.missing_parts import check_parts
    from bmt_server.vllm_integration.start.parsers import check_parsers
    from bmt_server.vllm_integration.structured_outputs import (
        STRICT_TOOLS_ENV,
        TAG_BACKEND,
        BackendChoice,
    )
    from bmt_server.vllm_integration.unsupported_flags import check, check_model, count_drafts
    from bmt_server.vllm_integration.versions.check import cli_arguments, cli_startup

    cli_startup().cli_env_setup()
    arguments = cli_arguments()
    parser = arguments.make_arg_parser(FlexibleArgumentParser(prog="bmt-server serve"))
    # No value means that the operator gives none; `_take_over_flags` sets vLLM's default.
    parser.set_defaults(tool_strict_level=None)
    choice = BackendChoice(parser)
    args, defaults = parser.parse_args([*flags]), parser.parse_args([])
    check(args, defaults=defaults)
    check_model(model, args, defaults)
    args.root_path = checked_root_path(args.root_path)
    count_drafts(args)
    args.model_tag = args.model = checkpoint_folder(model, args.revision)
    check_parts(args.model)
    args.load_format = load_format(args.model, args.load_format)
    if args.model != model and not args.served_model_name:
        args.served_model_name = [model]
    backend = choice.apply(args)
    say(f"structured outputs: {backend}")
    if backend != TAG_BACKEND:
        # Forced tools are JSON schemas then, which every backend can do.
        os.environ.setdefault(STRICT_TOOLS_ENV, "0")
    args.enable_lora = True
    vars(args).update(engine_flags.TEXT_ONLY)
    args.middleware = [*args.middleware, MIDDLEWARE]
    # The middleware logs each request with its key and mask (`api/access_log.py`).
    args.disable_uvicorn_access_log = True
    if (reason := eager_reason()) and not args.enforce_eager:
        say(f"warning: {reason}; adding --enforce-eager")
        args.enforce_eager = True
    if args.dtype == "auto" and (reason := float32_reason()):
        say(f"{reason}; adding --dtype float32")
        args.dtype = "float32"
    arguments.validate_parsed_serve_args(args)
    check_parsers(args)
    return args


def _take_over_flags(args: Namespace) -> dict[str, Any]:
    """Settings given by vLLM's flags, which are cleared for vLLM itself.

    The API process ends running requests before vLLM stops (`api/shutdown.py`), and bounds the
    queue before vLLM sees a request (`api/admission.py`).
    """
    taken: dict[str, Any] = {}
    if args.shutdown_timeout:
        taken["drain_s"] = args.shutdown_timeout
    if args.max_num_queued_reqs is not None:
        taken["queue"] = args.max_num_queued_reqs
    args.shutdown_timeout, args.max_num_queued_reqs = 0, None
    taken["strict_forced_tools"] = args.tool_strict_level is None
    args.tool_strict_level = args.tool_strict_level or "auto"
    return taken


def _prepare_kernel() -> None:
    """Compile the mask kernel before the engine waits for it, and print its name."""
    import torch
    from vllm.platforms import current_platform

    from bmt_server.worker.kernels.selection import choose_kernel

    kernel = choose_kernel(torch.device(current_platform.device_type), say)
    say(f"mask kernel: {kernel.name}, {kernel.description}")


def _embedded_registry(stack: ExitStack, data_dir: Path, args: Namespace) -> str:
    """URL of an embedded Valkey that runs until `stack` closes."""
    from bmt_server.registry.embedded import EmbeddedValkey

    if (args.api_server_count or 1) > 1 or args.nnodes > 1:
        say("the embedded registry serves this host only; replicas on other hosts need --registry")
    valkey = stack.enter_context(EmbeddedValkey(data_dir / "registry"))
    say(f"embedded registry at {valkey.url}")
    say(f"the embedded registry is {valkey.binary}")
    return valkey.url


def _build_settings(
    model: str, checkpoint: str, data_dir: Path, chosen: dict[str, Any]
) -> Settings:
    say(f"reading the fingerprint of {checkpoint}")
    identity = identify(
        checkpoint,
        chosen["precision"],
        quantized=chosen["quantized"],
        family=chosen["family"],
        kept=partial(kept_family, chosen["registry_url"]),
        fingerprint=partial(bmt_core.fingerprint, cache_dir=data_dir / "fingerprints"),
    )
    if identity.own != identity.base:
        say(
            f"precision {chosen['precision']}: masks of the base {identity.base[:12]}… are served "
            f"on {identity.own[:12]}…, by {chosen['family'] or 'the manifest in the registry'}"
        )
    return Settings(
        model_id=model,
        model_path=checkpoint,
        fingerprint=identity.base,
        served_fingerprint=identity.own,
        cache_dir=str(data_dir / "masks"),
        **chosen,
    )


def _prepare_cpu(settings: Settings, args: Namespace, flags: Sequence[str]) -> None:
    """Set the variables of vLLM's CPU backend, after the registry started without them."""
    from vllm.platforms import current_platform

    from bmt_server.vllm_integration import cpu_environment

    if not current_platform.is_cpu():
        return
    local_data_parallel = args.data_parallel_size_local or args.data_parallel_size
    variables = cpu_environment.recommended(
        os.environ,
        weights_bytes=cpu_environment.weights_bytes(args.model, args.dtype),
        mask_bytes=settings.mask_memory_bytes,
        workers=args.tensor_parallel_size * args.pipeline_parallel_size * local_data_parallel,
        kv_given=cpu_environment.sizes_kv_cache(flags),
    )
    cpu_environment.apply(os.environ, variables)
    for variable in variables:
        say(f"{variable.name}={variable.value} ({variable.reason})")


def _run_vllm(settings: Settings, args: Namespace) -> None:
    settings.export_env()
    os.environ["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = str(settings.keep_alive_s)
    # An allow-list: no other plugin of the environment is loaded.
    os.environ["VLLM_PLUGINS"] = f"{plugin.GENERAL},{plugin.ENDPOINTS}"
    os.environ.pop("VLLM_ALLOW_RUNTIME_LORA_UPDATING", None)
    os.environ.pop("VLLM_API_KEY", None)
    # Its store belongs to no tenant and never forgets; requests that need it are refused.
    if os.environ.pop("VLLM_ENABLE_RESPONSES_API_STORE", None):
        say("VLLM_ENABLE_RESPONSES_API_STORE is ignored: this server keeps no responses")
    # vLLM's loader logs a plugin that fails to import and serves without it; this call raises.
    plugin.register()
    from vllm.entrypoints.cli.serve import ServeSubcommand

    from bmt_server.vllm_integration.start.failures import cause
    from bmt_server.vllm_integration.start.missing_parts import hint

    try:
        ServeSubcommand.cmd(args)
    except Exception as error:
        if reason := cause(error, settings.stats_dir):
            raise SettingsError(hint(reason)) from error
        raise
    # vLLM returns normally when the engine dies.
    if process_context().engine_died.is_set():
        say("stopped because the engine died; its log has the cause")
        raise SystemExit(1)


def _default_data_dir() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local/share")) / "bmt-server"


def _user_errors() -> tuple[type[Exception], ...]:
    """Errors that the user can fix: printed as one line, without a traceback."""
    from bmt_server.registry.embedded import EmbeddedError
    from bmt_server.vllm_integration.unsupported_flags import UnsupportedFlagError

    return (bmt_core.BmtError, EmbeddedError, UnsupportedFlagError, VllmVersionError, SettingsError)
