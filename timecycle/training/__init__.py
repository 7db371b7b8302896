"""The rooms of train.py, one idea each."""
