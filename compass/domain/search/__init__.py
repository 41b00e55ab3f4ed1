"""What a search asks, and how its hits are scored."""
