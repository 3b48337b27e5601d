"""Optional packages of other libraries that are installed and cannot be imported."""

from bmt_core.optional_packages.unusable import (
    TORCH_PARTS,
    Unusable,
    fix,
    fix_torchvision,
    leave_out,
)

__all__ = ["TORCH_PARTS", "Unusable", "fix", "fix_torchvision", "leave_out"]
