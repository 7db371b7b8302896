"""What train.py is made of: settings, loader, checkpointer, logger, distributed, precision, signals."""
