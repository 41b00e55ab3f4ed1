"""One endpoint, over HTTP or by a Serve handle."""
