"""Backends: from a program to something that runs. None of them knows another."""
