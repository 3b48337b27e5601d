"""Survey of every causal architecture of transformers: what masks of it train, and what serves."""
