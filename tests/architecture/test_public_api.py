"""The public surface is these lists; changing it is a decision, not an accident."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest

SURFACE = {
    "bmt_core": """
        LATEST BadChecksum BadHeader BadMagic BadMetadata Base BaseMismatch BmtError
        CheckpointError DigestMismatch FormatError GraderError Header InvalidName LimitError Limits
        Mask MaskDiff MaskError MaskRef Overlap PayloadError PositionsError RowError TensorHeader
        TensorMask TooManyZeros TooLarge TrailingBytes Truncated UnsupportedVersion compare
        decode difference encode file_digest fingerprint geometry inspect intersection jaccard
        load save
        suggest_name symmetric_difference union validate_alias validate_digest validate_name
    """,
    "bmt_trainer": """
        ConfigError DataError EmptyMask ExpertTensors FusedGate LibraryError ModelError
        ModelNotFound NoTargets NonFinite OutputError QuantizedModel ResumeError RewardError
        RolloutError TrainerError UnknownBase
    """,
    "bmt_server.offline": "flips_request mask_request masked_llm",
    "bmt_client": """
        Alias ApiKey AsyncBmtClient AuthenticationError BaseModelInfo BmtClient BmtClientError
        Conflict FileInfo Invalid JobEvent JobInfo KeyInfo LimitTable Limits MaskInfo ModelInfo
        NewApiKey NotFound Page PermissionDenied ProtocolError RateLimited Retention TooLarge
        Unavailable Upload Usage UsageError UsageRow Version
    """,
    "bmt_client.hub": "Fetched HubPlace Pushed is_place parse_place pull push require_push",
}


@pytest.mark.parametrize("package", SURFACE)
def test_the_surface_is_the_list(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(SURFACE[package].split())
    for name in module.__all__:
        assert hasattr(module, name)


@pytest.mark.parametrize("package", SURFACE)
def test_public_objects_are_documented(package):
    module = importlib.import_module(package)
    bare = []
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            # Errors may be explained where their tree is drawn.
            tree = sys.modules[value.__module__].__doc__ or ""
            drawn = inspect.isclass(value) and issubclass(value, Exception) and name in tree
            if not (value.__doc__ or "").strip() and not drawn:
                bare.append(name)
            if inspect.isclass(value):
                bare += [
                    f"{name}.{n}"
                    for n, f in vars(value).items()
                    if inspect.isfunction(f) and not n.startswith("_") and not f.__doc__
                ]
    assert not bare


def test_errors_share_one_base():
    for package, base in (
        ("bmt_core", "BmtError"),
        ("bmt_trainer", "TrainerError"),
        ("bmt_client", "BmtClientError"),
    ):
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) and issubclass(value, Exception):
                assert issubclass(value, getattr(module, base)), name
