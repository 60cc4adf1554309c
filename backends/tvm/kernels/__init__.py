"""Kernels, declared by their meaning, and the rules that select them. Needs no compiler library."""
