"""The rules of a rebuild: its order, its record, its progress, its budget and its estimate."""
