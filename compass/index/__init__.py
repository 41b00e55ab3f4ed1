"""What finds chunks: a space's index follows the log of its collection."""
