"""Compass: swap embedding models under a live collection."""

__version__ = "0.1.0"
