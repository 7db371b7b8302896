"""Training runs: settings, objectives, loader, checkpointer, run folder, logger, distributed, and the loop."""
