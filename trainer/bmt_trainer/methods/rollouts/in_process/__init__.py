"""Rollouts in the trainer's process: by vLLM, and by transformers in pieces."""
