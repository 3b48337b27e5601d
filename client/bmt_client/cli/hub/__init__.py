"""Commands on masks of the Hugging Face Hub."""
