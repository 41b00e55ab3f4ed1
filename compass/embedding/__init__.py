"""Calling embedding endpoints, and the built-in model."""
