"""Parts of a connection: stored addresses and keys, trust, failures, and streams of events."""
