"""What the intervals and the pairs of a comparison are, in words."""

from collections.abc import Sequence

from aegis_eval.bootstrap import REPLICATES
from aegis_eval.results import Comparison
from aegis_eval.tables import passages_of


def interval_note(comparison: Comparison) -> str:
    """What the intervals are and what they cover, in words."""
    same = (
        "Every arm meets the same questions and the same initial states. Times of a step are beside whatever else the "
        "machine did then: benchmarks/step.py compares them."
    )
    if passages_of(comparison):
        same += (
            " Perplexity is per token, a geometric mean over seeds, its interval the bootstrap over passages and seeds."
        )
    if len(comparison.seeds) <= 1:
        return (
            "Square brackets hold 95 % intervals: Wilson’s for rates, a bootstrap over initial states for a set of "
            "several tasks, which share them, and over questions for retention. They cover the choice of questions and "
            "of initial states, not that of the training seed: there is one seed an arm. "
            f"{same}"
        )
    return (
        f"A value is the mean over training seeds; round brackets hold every seed’s own ({_listed(comparison.seeds)}), "
        f"square brackets a 95 % interval: a bootstrap of {REPLICATES:,} replicates that redraws seeds, and questions "
        "within their families (initial states by their seed, which a set’s tasks share) for all seeds at once. A rate "
        "of one seed in one task, of one seed’s answers, or without any variance, has Wilson’s interval. Few seeds "
        "make an interval too narrow where they differ by more than questions and states do, as in what an unprotected "
        "arm keeps: over three it then holds the true mean in three quarters of cases, over two in half of them. "
        "Retention is accuracy over that of the untouched backbone on the same questions, "
        f"the worst family each seed’s own. {same}"
    )


def difference_note(comparison: Comparison) -> str:
    """How differences are paired, in words."""
    method = (
        "Newcombe’s 95 % interval for paired rates, a bootstrap over initial states for a set of several tasks"
        if len(comparison.seeds) <= 1
        else "the same two-level bootstrap of the paired differences (Newcombe’s interval where a rate has Wilson’s)"
    )
    base = comparison.study.arm(comparison.study.baseline).label
    return (
        f"Percentage points over {base} at the same learning rate. The same questions, initial states and training "
        f"seeds make pairs: {method}."
    )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)
