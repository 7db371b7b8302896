"""Reading images, masks and videos; clips to train on; synthetic video. The readers know no torch."""
