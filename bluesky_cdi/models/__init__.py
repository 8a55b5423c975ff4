"""The canvas network and its weights."""
