"""The `compass` command."""
