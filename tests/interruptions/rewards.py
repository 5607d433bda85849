"""A reward by dotted path, judged in a worker process: both outcomes are seen, and they depend on the text alone."""


def by_length(completions, answer, **_):
    return [float(len(completion[0]["content"]) % 2 == 0) for completion in completions]
