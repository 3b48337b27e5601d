"""Gate projections that a checkpoint stores as codes, and the family of a base and its copies."""
