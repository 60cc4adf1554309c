"""Kernels for CPUs: emitters of TIR that are built from vectors."""
