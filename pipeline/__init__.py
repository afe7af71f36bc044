"""Two-stage offline distillation for monocular depth: cache a teacher once, train students from the store."""
