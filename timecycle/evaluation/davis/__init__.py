"""DAVIS-2017: video object segmentation, scored by J and F."""
