"""The router's process: the authority over who answers what."""
