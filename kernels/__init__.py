"""Triton kernels of timecycle.ops, a module an operator. They import nothing of timecycle."""
