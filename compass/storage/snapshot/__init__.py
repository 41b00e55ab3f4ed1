"""Snapshots of a collection: checkpoints and the immutable parts that they name."""
