"""Passes: rewrites of programs, their pipelines, and the text in which pipelines are written."""
