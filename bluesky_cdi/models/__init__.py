"""The unrolled network and its weights."""
