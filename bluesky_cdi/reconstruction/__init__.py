"""From frames to an object: online as they come, or from a recorded scan at once."""
