"""A self-contained page that shows what the students learned."""
