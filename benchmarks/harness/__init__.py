"""Measuring: inputs, environment, contention, statistics, resumed runs."""
