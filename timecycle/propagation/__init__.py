"""Label propagation: protocols, labels, one step, a whole video."""
