"""One small adapter for each way a teacher comes. Only stage one imports them."""
