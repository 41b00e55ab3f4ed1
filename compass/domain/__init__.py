"""What Compass is about, without a network, a disk or a clock: rules as pure functions and values."""
