"""What keeps a run from losing or spoiling its work: checks of values, files and signals."""
