"""Evaluate students and cached teachers against ground truth; compare results; studies of many students."""
