"""Networks: encoders, training-free descriptors, and the objectives that train an encoder."""
