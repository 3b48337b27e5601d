"""Files and fine-tuning jobs of a server: `client.files` and `client.jobs`."""
