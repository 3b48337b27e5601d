"""Fine-tuning jobs by real servers, engines and workers."""
