"""The parts of train.py: settings, objectives, loader, checkpointer, run folder, logger, distributed."""
