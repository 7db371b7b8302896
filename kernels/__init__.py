"""Triton kernels of timecycle.ops, one module per operator. They do not import timecycle."""
