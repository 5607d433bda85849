"""Teachers' scores: log-probabilities of given completions, the prompts that condition teachers, and their weights."""
