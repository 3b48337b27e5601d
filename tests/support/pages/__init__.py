"""Pages with commands: their fenced blocks, and a shell that runs them as a reader would."""
