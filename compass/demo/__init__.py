"""The main job on real text, with nothing to download."""
