"""A student, or a cached teacher, against ground truth; significance of differences; studies."""
