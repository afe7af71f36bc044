"""Stage one: images of a source -> teacher -> store."""
