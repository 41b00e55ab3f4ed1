"""Nearest neighbours: a graph, an exact part, and the search over both."""
