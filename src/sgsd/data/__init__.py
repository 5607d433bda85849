"""Data sets: sources, adapters from rows to problems, curation, and overlap of texts."""
