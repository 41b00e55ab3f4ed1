"""The log of a collection: the acknowledgement, the order, and the only way to change anything."""
