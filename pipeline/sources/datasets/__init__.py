"""One file a data set; each registers itself with a constant `SOURCE`."""
