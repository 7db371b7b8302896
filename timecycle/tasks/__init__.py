"""Tasks beside object masks, on the same engine: JHMDB's poses, VIP's parts, BADJA's joints, TAP-Vid's points."""
