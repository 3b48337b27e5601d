"""Engines that run whole: signals to a server, and rollouts in the trainer's process."""
