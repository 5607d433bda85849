"""Trainers on TRL, one module each, and what they share: configuration, teacher weights, checkpoint state."""
