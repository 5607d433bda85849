"""Evaluation: judged samples, metrics with confidence intervals, comparisons of runs."""

from sgsd.evaluation.comparison import Comparison, compare_runs
from sgsd.evaluation.run import Evaluation, Sample, evaluate
from sgsd.evaluation.statistics import Estimate, mean_estimate, paired_difference

__all__ = [
    "Comparison",
    "Estimate",
    "Evaluation",
    "Sample",
    "compare_runs",
    "evaluate",
    "mean_estimate",
    "paired_difference",
]
