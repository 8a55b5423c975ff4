"""Pretraining of the frame encoder without labels: parts of scans are hidden, and predicted from the others."""
