"""Errors of the engine's start that the operator can mend, each as one line."""
