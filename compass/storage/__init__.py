"""A collection on disk: objects, log, parts, vectors, and the view derived from them."""
