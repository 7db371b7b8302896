"""The targets of the fuzz run, a module each."""
