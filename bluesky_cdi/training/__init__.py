"""Pretraining of the canvas network on simulated scans."""
