"""Trainers on TRL, one module a method, and what they share: base, configuration, rows, checkpoint state."""
