"""The node's view of a collection, derived from its log; it may be deleted at any time."""
