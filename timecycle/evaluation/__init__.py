"""Evaluations on DAVIS, JHMDB, VIP, BADJA and TAP-Vid."""
