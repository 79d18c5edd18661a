"""The study's result as Markdown."""

import statistics
from collections.abc import Iterable, Sequence

from mtkd_cache.study.gain.table import gain_text, spread
from mtkd_cache.study.labels.arms import ARMS, BASELINE
from mtkd_cache.study.labels.results import FIGURES, Result, gain_over, groups, mean_of, worst_anatomy
from mtkd_cache.study.report.formats import signed, spoken

COLUMNS = (
    *("seeds", "own subsets", "over plain", "multilabel", "over plain", "with presence", "over plain", "over plain without"),
    *("estimated", "over plain", "worst anatomy", "false alarms", "with presence", "missed", "claimed twice", "known precision"),
    "minutes",
)
ALARMS = ("alarms", "alarms_with_presence", "missed_with_presence")
KINDS = ("own", "exclusive", "absent", "both")
ORDER = {name: place for place, name in enumerate((*KINDS, *ARMS))}
NOTE = (
    "In percent at operating points, mean ± standard deviation over the seeds. Own subsets: Dice on each anatomy's own. "
    "Multilabel: Dice of all heads on the multilabel images. With presence: also with presence thresholds; over plain with "
    "them, and over plain without. Estimated: the Dice to expect on all pictures of the split, from "
    "the own subsets and the false alarms. Over plain: over the recipe without labels, paired by seed, with the 95 % t-interval. "
    "Worst anatomy: the smallest gain in multilabel Dice, or in the estimate where the split has no multilabel images. False "
    "alarms: pictures that lack an anatomy by their label and in which its head claims a pixel, mean over the anatomies. Missed: "
    "pictures that show it and in which its head, with presence, claims none. All "
    "students of a table take equally many steps, and so do the teachers."
)


def markdown(results: Sequence[Result]) -> str:
    """A table for each study, split and network, teachers first."""
    parts = []
    for (study, split, network), arms in sorted(
        groups(results).items(), key=lambda item: (*item[0][:2], item[0][2] != "teachers")
    ):
        of_teachers = network == "teachers"
        epochs = "/".join(map(str, sorted({result.epochs for each in arms.values() for result in each})))
        columns = ("negatives" if of_teachers else "arm", *COLUMNS)
        baseline = arms.get("own" if of_teachers else BASELINE, [])
        rows = [_row(arm, arms[arm], baseline) for arm in sorted(arms, key=ORDER.__getitem__)]
        parts += [f"**{study}, {split}: {network} ({epochs} epochs)**\n"]
        parts += [f"| {' | '.join(line)} |" for line in (columns, ("---",) * len(columns), *rows)]
        parts.append("")
    return "\n".join([*parts, NOTE, ""])


def _row(arm: str, results: Sequence[Result], baseline: Sequence[Result]) -> tuple[str, ...]:
    others = [] if results is baseline else baseline
    cells = []
    for figure, against in FIGURES:
        cells += [] if against else [_mean(mean_of(getattr(result, figure)) for result in results)]
        cells.append(gain_text(gain_over(results, baseline if against else others, figure, against)))
    worst = worst_anatomy(results, others)
    return (
        arm,
        ", ".join(str(result.seed) for result in results),
        *cells,
        f"{spoken(worst[0])} {signed(worst[1])}" if worst else "",
        *(_mean(mean_of(getattr(result, name)) for result in results) for name in ALARMS),
        _mean(result.claimed_twice for result in results),
        _mean(result.known_precision for result in results),
        f"{statistics.mean(result.minutes for result in results):.1f}",
    )


def _mean(values: Iterable[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    return spread(known) if known else ""
