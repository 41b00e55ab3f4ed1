"""The query's process: every use case, in the domain's values."""
