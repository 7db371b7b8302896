"""Evaluations compared object by object."""
