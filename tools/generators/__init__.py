"""Generators of pages: each module has `pages()`, path -> text (None: the file is to go)."""
