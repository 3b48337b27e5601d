"""Text for programs that a built site gets: Markdown of every page, and llms.txt."""
