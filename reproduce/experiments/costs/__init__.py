"""Time and memory of single parts, compared in turns."""
