"""Reconstruction and decisions while a run is measured."""
