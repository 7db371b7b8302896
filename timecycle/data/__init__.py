"""Data in: DAVIS sequences and made videos."""
