"""Visualization of masks and of training samples."""
