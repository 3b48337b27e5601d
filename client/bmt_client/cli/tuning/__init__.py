"""Commands on files and jobs for fine-tuning."""
