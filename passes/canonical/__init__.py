"""Canonical form: algebra, views and folding of constants."""
