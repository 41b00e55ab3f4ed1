"""The HTTP interface around the use cases."""
