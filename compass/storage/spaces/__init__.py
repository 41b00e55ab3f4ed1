"""What is on disk of a vector space: vectors, the record of its rebuild, the quarantine, the saved index."""
