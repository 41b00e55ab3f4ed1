"""Many endpoints of one model, as a rebuild uses them."""
