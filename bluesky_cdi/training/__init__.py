"""Pretraining of the unrolled network on simulated scans."""
