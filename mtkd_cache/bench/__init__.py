"""Measurements: the student's step three ways, the cache against its limits, inference plain and fast."""
