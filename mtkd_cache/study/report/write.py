"""`mtkd-cache report`: the runs' rows as tables, figures and one page, in a folder."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import WEIGHTS
from mtkd_cache.study.published import Paper, published
from mtkd_cache.study.report.collect import Result, Row, collect, mean, results_of, teachers_of
from mtkd_cache.study.report.formats import full_name
from mtkd_cache.study.report.gains import Gain, anatomy_table, gain_table, gains, sentence
from mtkd_cache.study.report.header import cache_fingerprints, describe_data, facts, remarks
from mtkd_cache.study.report.markup import Table
from mtkd_cache.study.report.page import Picture, render
from mtkd_cache.study.report.panels import TEACHER, panels
from mtkd_cache.study.report.qualitative import qualitative_figure
from mtkd_cache.study.report.scatter import paper_points, points_of, scatter_figure
from mtkd_cache.study.report.style import save
from mtkd_cache.study.report.tables import table1, table2
from mtkd_cache.study.report.timings import BENCH, TIMINGS, find_timings

TITLE = "Multi-teacher knowledge distillation: results"
FIGURE1 = "Figure 1. Parameters against mean Dice at probability 0.5"
FIGURE1_KD = "; red: with distillation, the arrow from the same network without it"
FIGURE3 = (
    "Figure 3. Truth and predictions. One test sample an anatomy: the one whose truth has the median area of its "
    "anatomy's test samples, so that no result had a say in the choice. Each head at its operating point, or at probability 0.5 "
    "where it has none. White outline: the truth; number: Dice, %."
)
NO_TIMES = f"Time and FPS are left out: there is no {TIMINGS} beside the run folders. It holds what {BENCH} prints."
NO_STORE = "Figure 3 (pictures and predictions) is left out: it needs the sample store (--store)."
NO_STUDENT = "Figure 3 (pictures and predictions) is left out: it needs a student with weights."
NO_SAMPLE = "Figure 3 is left out: the test split has no sample with a truth to show."


def write_report(
    runs: Sequence[Path], out: Path, *, store: str | None = None, labels: Mapping[Path, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Write report.md, report.html, figure1 and, where networks and store are at hand, figure3 (.png, .svg) into `out`.

    Args:
        runs: run folders and teachers folders, evaluated. A bench-inference.json beside them gives the times.
        out: the report's folder.
        store: the runs' sample store; without it there is no figure 3, and none of the paper's figures beside ours.
        labels: names of some of the runs, see `collect`.

    Returns:
        rows, gains, store_fingerprint, cache_fingerprints, files and notes; Dice in 0..1.

    Raises:
        MtkdError: runs that cannot be reported, see `collect`, or a store that is not theirs.
    """
    out, opened = Path(out), None if store is None else SampleStore.open(store)
    rows, timings = collect(runs, labels), find_timings(runs)
    data = describe_data(rows, opened)
    paper = published() if data.is_papers else {}
    compared = gains(rows)
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = _figure1(rows, paper, out)
        figure3, notes = _figure3(rows, opened, out)
        pictures += figure3
        notes = remarks(data, rows) + [sentence(gain) for gain in compared if gain.losses] + notes + [NO_TIMES] * (not timings)
        # tables and pictures alternate, the widest tables (by anatomy) stand last
        blocks: list[Table | Picture] = [gain_table(compared, paper)] if compared else []
        blocks += [*pictures[:1], table1(rows, paper, timings), *pictures[1:]]
        blocks += [anatomy_table(compared, data.anatomies)] if compared else []
        blocks.append(table2(rows, data.anatomies, paper))
        if any(row.means_at_point for row in rows):
            blocks.append(table2(rows, data.anatomies, {}, at_point=True))
        texts = [out / "report.md", out / "report.html"]
        for path in texts:
            path.write_text(render(path.name, TITLE, facts(data, rows), notes, blocks), encoding="utf-8")
    except OSError as error:
        raise MtkdError(f"{out}: the report cannot be written ({error}). Name another folder with --out.") from error
    drawn = [picture.path.with_suffix(suffix) for picture in pictures for suffix in (".png", ".svg")]
    return {
        "rows": [_row(row, paper) for row in rows],
        "gains": _gains(compared),
        "store_fingerprint": data.fingerprint,
        "cache_fingerprints": cache_fingerprints(rows),
        "files": [str(path) for path in (*texts, *drawn)],
        "notes": notes,
    }


def _figure1(rows: Sequence[Row], paper: Paper, out: Path) -> list[Picture]:
    """Parameters against Dice; nothing where no row has both."""
    if not (points := points_of(rows)):
        return []
    svg = save(scatter_figure(points, paper_points(paper)), out / "figure1")[1]
    distilled = FIGURE1_KD if any(row.kd for row in rows) else ""
    caption = f"{FIGURE1}{distilled}." + (" Gray: the paper's." if paper else "")
    return [Picture("figure1", caption, "Parameters against mean Dice; the numbers stand in Table 1.", svg)]


def _figure3(rows: Sequence[Row], store: SampleStore | None, out: Path) -> tuple[list[Picture], list[str]]:
    """Images and predictions, or a sentence on why there are none."""
    students = students_shown(rows)
    if not students or store is None:
        return [], [NO_STORE if students else NO_STUDENT]
    *_, student = students.values()
    teachers = teachers_shown(rows, student)
    networks = {**({TEACHER: teachers.path} if teachers else {}), **{title: result.path for title, result in students.items()}}
    drawn = panels(store, networks)
    if not drawn:
        return [], [NO_SAMPLE]
    png = save(qualitative_figure(drawn), out / "figure3")[0]
    caption = f"{FIGURE3} Student: {full_name(student.training.arch)}, seed {student.seed}"
    caption += f"; teachers: {full_name(teachers.training.arch)}." if teachers else "."
    alt = "Image, truth and the networks' masks for " + ", ".join(panel.anatomy for panel in drawn)
    return [Picture("figure3", caption, alt, png)], []


def students_shown(rows: Sequence[Row]) -> dict[str, Result]:
    """Students with weights, by the titles of their columns: a pair of which the second is distilled, else any pair, else one.

    Of several it is the one of the smallest architecture, at its lowest seed.
    """
    pairs = [
        (not gain.distills, gain.after.params_m or math.inf, gain.after.arch, seed, dict(zip(gain.sides, results, strict=True)))
        for gain in gains(rows)
        for seed, results in gain.seeds.items()
        if all(map(_has_weights, results))
    ]
    if pairs:
        chosen = min(pairs, key=lambda pair: pair[:4])[-1]
        return {f"Student {side}": result for side, result in chosen.items()}
    known = [result for result in results_of(rows) if result.layout != "separate" and _has_weights(result)]
    alone = min(known, key=lambda result: (result.params_m or math.inf, *result.key, result.seed), default=None)
    return {"Student": alone} if alone else {}


def _has_weights(result: Result) -> bool:
    return (result.path / WEIGHTS).exists()


def teachers_shown(rows: Sequence[Row], student: Result) -> Result | None:
    """The teachers a student was distilled from, if they are among the rows with all weights, or None."""
    teachers = teachers_of(rows, student)
    if teachers and all((teachers.path / anatomy / WEIGHTS).exists() for anatomy in teachers.training.anatomies):
        return teachers
    return None


def _gains(compared: Sequence[Gain]) -> list[dict[str, Any]]:
    """What the report returns of the pairs: figures at probability 0.5 and, where they have them, at the operating points."""
    at_points = {(gain.before.key, gain.after.key): gain for gain in compared if gain.at_point}
    found = []
    for gain in compared:
        if not gain.at_point:
            rows = {"before": gain.before, "after": gain.after}
            sides = {side: {"label": row.label, "kd": row.kd} for side, row in rows.items()}
            at = at_points.get((gain.before.key, gain.after.key))
            more = {"at_operating_point": _gain(at)} if at else {}
            found.append({"arch": gain.after.arch, "layout": gain.after.layout, **sides, **_gain(gain), **more})
    return found


def _gain(gain: Gain) -> dict[str, Any]:
    by_anatomy = {
        anatomy: {"difference": after - before, "interval": interval}
        for anatomy, (before, after, interval) in gain.by_anatomy.items()
    }
    return {"seeds": list(gain.dice), "differences": list(gain.differences.values()), "by_anatomy": by_anatomy}


def _row(row: Row, paper: Paper) -> dict[str, Any]:
    reference, (interval, intervals) = paper.get(row.published_key), row.intervals()
    return {
        "label": row.label,
        "arch": row.arch,
        "layout": row.layout,
        "kd": row.kd,
        "seeds": list(row.seeds),
        "params_m": row.params_m,
        "mean_dice": row.mean_dice,
        "sd_dice": row.spread,
        "mean_dice_interval": interval,
        "mean_dice_at_operating_point": mean(row.means_at_point),
        "dice_at_operating_point": {anatomy: row.dice_at_point(anatomy) for anatomy in row.results[0].training.anatomies},
        "dice": {anatomy: row.dice(anatomy) for anatomy in row.results[0].training.anatomies},
        "dice_intervals": intervals,
        "runs": [str(result.path) for result in row.results],
        "paper": reference
        and {"params_m": reference.params_m, "dice": reference.dice / 100, "ms": reference.ms, "fps": reference.fps},
    }
