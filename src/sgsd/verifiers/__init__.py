"""Is this completion's answer right?

``get_verifier("math").verify(completion, answer)`` → ``Verdict(outcome, reason, extracted)``. Every verification runs
in a worker process under a hard timeout; see ``docs/verifier.md`` for what counts as a right answer.
"""

from sgsd.verifiers.extract import Extraction, Found, extract_answer
from sgsd.verifiers.verdict import Outcome, Verdict, Verifier
from sgsd.verifiers.verifier import PooledVerifier, get_verifier

__all__ = [
    "Extraction",
    "Found",
    "Outcome",
    "PooledVerifier",
    "Verdict",
    "Verifier",
    "extract_answer",
    "get_verifier",
]
