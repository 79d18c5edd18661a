"""`mtkd-cache report`: the runs' rows as tables, figures and one page, in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import WEIGHTS
from mtkd_cache.study.published import Paper, published
from mtkd_cache.study.report.collect import BENCH, TIMINGS, Result, Row, collect, find_timings, mean, results_of, teachers_of
from mtkd_cache.study.report.formats import full_name
from mtkd_cache.study.report.header import cache_fingerprints, describe_data, facts, remarks, whole_study
from mtkd_cache.study.report.markup import Table
from mtkd_cache.study.report.page import Picture, render
from mtkd_cache.study.report.panels import panels
from mtkd_cache.study.report.qualitative import qualitative_figure
from mtkd_cache.study.report.scatter import paper_points, points_of, scatter_figure
from mtkd_cache.study.report.style import save
from mtkd_cache.study.report.tables import Gain, gain_table, gains, table1, table2

TITLE = "Multi-teacher knowledge distillation: results"
FIGURE1 = (
    "Figure 1. Parameters against mean Dice at probability 0.5. "
    "Squares: one network an anatomy; stars: one encoder shared by all decoders"
)
FIGURE1_KD = "; red: with distillation, the arrow from the same network without it"
FIGURE3 = (
    "Figure 3. Truth and predictions. One test sample an anatomy: the one whose truth has the median area of its "
    "anatomy's test samples, so that no result had a say in the choice. Each head at its operating point, or at probability 0.5 "
    "where it has none. White outline: the truth; number: Dice, %."
)
NO_TIMES = f"Time and FPS are left out: there is no {TIMINGS} beside the run folders. It holds what {BENCH} prints."
NO_STORE = "Figure 3 (pictures and predictions) is left out: it needs the sample store (--store)."
NO_PAIR = "Figure 3 (pictures and predictions) is left out: it needs one student with and without KD, of one seed, with weights."
NO_SAMPLE = "Figure 3 is left out: the test split has no sample with a truth to show."


def write_report(runs: Sequence[Path], out: Path, *, store: str | None = None) -> dict[str, Any]:
    """Write report.md, report.html, figure1 and, where networks and store are at hand, figure3 (.png, .svg) into `out`.

    Args:
        runs: run folders and teachers folders, evaluated. A bench-inference.json beside them gives the times.
        out: the report's folder.
        store: the runs' sample store; without it there is no figure 3.

    Returns:
        rows, gains, store_fingerprint, cache_fingerprints, files and notes; Dice in 0..1.

    Raises:
        MtkdError: runs that cannot be reported, see `collect`, or a store that is not theirs.
    """
    out, opened = Path(out), None if store is None else SampleStore.open(store)
    rows, paper, timings = collect(runs), published(), find_timings(runs)
    data = describe_data(rows, opened)
    compared = data.is_papers or whole_study(data, rows)
    tables = [table1(rows, paper, timings, comparable=compared), table2(rows, data.anatomies, paper if compared else {})]
    distilled, at_points = gains(rows), {gain.arch: gain for gain in gains(rows, at_point=True)}
    if distilled:
        both = [each for gain in distilled for each in (gain, at_points.get(gain.arch)) if each]
        tables.insert(0, gain_table(both, paper if data.same_anatomies else {}))
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = _figure1(rows, paper if data.is_papers else {}, out)
        figure3, notes = _figure3(rows, opened, out)
        pictures += figure3
        notes = remarks(data, rows) + notes + ([] if timings else [NO_TIMES])
        header = facts(data, rows)
        # tables and pictures alternate, the widest tables (by anatomy) stand last
        blocks: list[Table | Picture] = [*tables[:-2], *pictures[:1], tables[-2], *pictures[1:], tables[-1]]
        if any(row.means_at_point for row in rows):
            blocks.append(table2(rows, data.anatomies, {}, at_point=True))
        texts = [out / "report.md", out / "report.html"]
        for path in texts:
            path.write_text(render(path.name, TITLE, header, notes, blocks), encoding="utf-8")
    except OSError as error:
        raise MtkdError(f"{out}: the report cannot be written ({error}). Name another folder with --out.") from error
    drawn = [picture.path.with_suffix(suffix) for picture in pictures for suffix in (".png", ".svg")]
    return {
        "rows": [_row(row, paper) for row in rows],
        "gains": [
            {"arch": gain.arch, **_gain(gain), **({"at_operating_point": _gain(at)} if (at := at_points.get(gain.arch)) else {})}
            for gain in distilled
        ],
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
    pair = students_shown(rows)
    if pair is None or store is None:
        return [], [NO_STORE if pair else NO_PAIR]
    baseline, distilled = pair
    teachers = teachers_shown(rows, distilled)
    drawn = panels(store, teachers.path if teachers else None, baseline.path, distilled.path)
    if not drawn:
        return [], [NO_SAMPLE]
    png = save(qualitative_figure(drawn), out / "figure3")[0]
    students = f"Student: {full_name(baseline.training.arch)}, seed {baseline.seed}"
    caption = f"{FIGURE3} {students}" + (f"; teachers: {full_name(teachers.training.arch)}." if teachers else ".")
    alt = "Image, truth and the networks' masks for " + ", ".join(panel.anatomy for panel in drawn)
    return [Picture("figure3", caption, alt, png)], []


def students_shown(rows: Sequence[Row]) -> tuple[Result, Result] | None:
    """Baseline and distilled run, with weights, of the smallest architecture that has both, at their lowest seed."""
    students = [result for result in results_of(rows) if result.layout == "shared" and (result.path / WEIGHTS).exists()]
    distilled = {(result.training.arch, result.seed): result for result in students if result.kd}
    baselines = {(result.training.arch, result.seed): result for result in students if not result.kd}
    pairs = [(baseline, distilled[key]) for key, baseline in baselines.items() if key in distilled]
    return min(pairs, key=lambda pair: (pair[1].params_m or float("inf"), pair[1].key, pair[1].seed), default=None)


def teachers_shown(rows: Sequence[Row], student: Result) -> Result | None:
    """The teachers a student was distilled from, if they are among the rows with all weights, or None."""
    teachers = teachers_of(rows, student)
    if teachers and all((teachers.path / anatomy / WEIGHTS).exists() for anatomy in teachers.training.anatomies):
        return teachers
    return None


def _gain(gain: Gain) -> dict[str, Any]:
    return {"seeds": list(gain.dice), "differences": list(gain.differences.values())}


def _row(row: Row, paper: Paper) -> dict[str, Any]:
    reference, (interval, intervals) = paper.get(row.key), row.intervals()
    return {
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
