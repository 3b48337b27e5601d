"""Gate projections of checkpoints, and the names of their rows in fused tensors."""
