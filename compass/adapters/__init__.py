"""One foreign library or server each, behind a small class of ours."""
