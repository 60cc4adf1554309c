"""Capture: models of any source become programs."""
