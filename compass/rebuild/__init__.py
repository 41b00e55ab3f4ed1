"""Filling a vector space in bulk: plan, pipeline, progress."""
