"""Evaluations, each with its reader, its metric and its `evaluate_*`: DAVIS, JHMDB, VIP, BADJA, TAP-Vid."""
