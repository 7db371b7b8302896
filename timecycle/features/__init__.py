"""What frames are described by: named features, a caller's own, and the maps that they return."""
