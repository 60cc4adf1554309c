"""The language: types, nodes, programs, inference, text, interpretation and rewriting."""
