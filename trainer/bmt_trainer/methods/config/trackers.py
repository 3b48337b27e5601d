"""Names of trackers in the settings."""

from __future__ import annotations

from bmt_trainer.errors import ConfigError

#: Trackers that a run may report to; the names are those of their packages.
TRACKERS = ("trackio", "wandb", "tensorboard", "mlflow")


def names_of(report_to: str | None) -> list[str]:
    """The trackers of a setting, with commas between them. Raises ConfigError."""
    names = [name.strip() for name in (report_to or "").split(",") if name.strip()]
    if names == ["none"]:
        return []
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"report_to: {name!r} is none of {', '.join(TRACKERS)}")
    return list(dict.fromkeys(names))
