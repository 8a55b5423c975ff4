"""What the command ``bluesky-cdi bench`` measures, one question a module."""
