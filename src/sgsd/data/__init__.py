"""Data sets: sources, rows to problems, curation, and overlap of texts."""
