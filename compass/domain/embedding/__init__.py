"""What an embedding endpoint's answers mean, and whether it still is the model that built a space."""
