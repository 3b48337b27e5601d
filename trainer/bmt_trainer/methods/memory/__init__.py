"""Memory of a training run: estimated from its settings and the model's shapes."""
