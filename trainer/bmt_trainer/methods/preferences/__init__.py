"""Training by preferences: of two answers to a prompt, one is chosen and one rejected."""
