"""Over HTTP: servers in turns, growth of the number of masks, starts."""
