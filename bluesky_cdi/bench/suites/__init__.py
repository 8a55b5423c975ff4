"""Questions that are measured, one a module: each function returns plain JSON values."""
