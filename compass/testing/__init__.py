"""What tests need, those of users too: an embedding server, clocks."""
