"""How figures are measured: inputs, environment, contention, statistics, resumed runs."""
