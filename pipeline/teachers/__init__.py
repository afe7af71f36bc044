"""One adapter for each kind of teacher. Only stage one imports them."""
