"""Guards of a run against the loss or damage of its work: values, files and signals."""
