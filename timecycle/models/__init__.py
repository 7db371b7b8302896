"""The networks: the encoder, what needs no training, and the objectives that train it."""
