"""Positions in a sequence: which values follow it, caches of keys and values, and positional re-encoding."""
