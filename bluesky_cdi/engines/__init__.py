"""Iterative reconstruction engines."""
