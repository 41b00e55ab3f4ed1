"""Bytes to the domain's values and back, once for HTTP and for the Python handle."""
