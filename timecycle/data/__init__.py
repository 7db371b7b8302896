"""Readers of images, masks, videos and DAVIS; training clips and datasets; synthetic video."""
