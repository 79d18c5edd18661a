"""`mtkd-cache report`: the runs' rows as tables, figures and one page, in a folder."""

from collections.abc import Sequence
from pathlib import Path

from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.markdown import plain
from mtkd_cache.study.report.collect import BENCH, TIMINGS, Result, Row, collect, find_timings, read_timings, teachers_of
from mtkd_cache.study.report.formats import full_name
from mtkd_cache.study.report.header import Data, cache_fingerprints, describe_data, facts, remarks, whole_study
from mtkd_cache.study.report.markup import Table, html, markdown
from mtkd_cache.study.report.page import Picture, page, picture_html
from mtkd_cache.study.report.qualitative import qualitative_figure
from mtkd_cache.study.report.scatter import paper_points, points_of, scatter_figure
from mtkd_cache.study.report.style import save
from mtkd_cache.study.report.tables import Paper, gain_table, gains, references, table1, table2

TITLE = "Multi-teacher knowledge distillation: results"
FIGURE1 = "Figure 1. Parameters against mean Dice. Squares: one network an anatomy; stars: one encoder shared by all decoders"
FIGURE1_KD = "; red: with distillation, the arrow from the same network without it"
FIGURE3 = (
    "Figure 3. Truth and predictions. One test sample an anatomy: the one whose truth has the median area of its "
    "anatomy's test samples, so that no result had a say in the choice. White outline: the truth; number: Dice, %."
)
NO_TIMES = f"Time and FPS are left out: there is no {TIMINGS} beside the run folders. It holds what {BENCH} prints."
WEIGHTS = "weights.safetensors"


def write_report(runs: Sequence[Path], out: Path, *, store: str | None = None, timings: dict | None = None) -> dict:
    """Write report.md, report.html, figure1 and, where networks and store are at hand, figure3 (.png, .svg) into `out`.

    runs: run folders and teachers folders, evaluated. store: their sample store; without it there is no figure 3.
    timings: what `mtkd-cache bench inference --json` prints; without it a `bench-inference.json` beside the runs is read.
    Returns {"rows": [...], "gains": [...], "files": [...], "notes": [...]}, Dice in 0..1.
    Raises MtkdError for runs that cannot be reported, see `collect`, and for a store that is not theirs.
    """
    out = Path(out)
    rows = collect(runs)
    opened = _open(store)
    data = describe_data(rows, opened)
    measured = find_timings(runs) if timings is None else read_timings(timings)
    paper = references()
    compared = data.is_papers or whole_study(data, rows)
    tables = [table1(rows, paper, measured, comparable=compared), table2(rows, data.anatomies, paper if compared else {})]
    if found := gains(rows):
        tables.insert(0, gain_table(found, paper if data.same_anatomies else {}))
    try:
        out.mkdir(parents=True, exist_ok=True)
        files, pictures, notes = _figures(rows, data, paper, opened, out)
        notes = remarks(data, rows) + notes + ([] if measured else [NO_TIMES])
        pairs = facts(data, rows)
        (out / "report.md").write_text(_markdown(pairs, notes, tables, pictures), encoding="utf-8")
        blocks = _in_order([html(table) for table in tables], [picture_html(picture) for picture in pictures])
        (out / "report.html").write_text(page(TITLE, pairs, notes, blocks), encoding="utf-8")
    except OSError as error:
        raise MtkdError(f"{out}: the report cannot be written ({error}). Name another folder with --out.") from error
    files = [out / "report.md", out / "report.html", *files]
    return {
        "rows": [_row(row, paper) for row in rows],
        "gains": [{"arch": g.arch, "seeds": list(g.seeds), "differences": list(g.differences)} for g in found],
        "store_fingerprint": data.fingerprint,
        "cache_fingerprints": cache_fingerprints(rows),
        "files": [str(path) for path in files],
        "notes": notes,
    }


def _open(store: str | None):
    if store is None:
        return None
    from mtkd_cache.data.sample_store import SampleStore

    return SampleStore.open(store)


def _figures(rows: Sequence[Row], data: Data, paper: Paper, store, out: Path) -> tuple[list[Path], list[Picture], list[str]]:
    """Draw what can be drawn. Returns the files, the pictures for the page, and a sentence on what was left out."""
    files, pictures = [], []
    distilled = any(row.kd for row in rows)
    if points := points_of(rows):
        behind = paper_points(paper) if data.is_papers else []
        saved = save(scatter_figure(points, behind), out / "figure1")
        files += saved
        alt = "Parameters against mean Dice; the numbers stand in Table 1."
        caption = f"{FIGURE1}{FIGURE1_KD if distilled else ''}." + (" Grey: the paper's." if behind else "")
        pictures.append(Picture("figure1", caption, alt, saved[1]))
    pair = students_shown(rows)
    if store is None or pair is None:
        why = (
            "it needs the sample store (--store)"
            if pair
            else "it needs one student with and without KD, of one seed, with weights"
        )
        return files, pictures, [f"Figure 3 (pictures and predictions) is left out: {why}."]
    from mtkd_cache.study.report.panels import panels

    teachers = teachers_shown(rows, pair[1])
    drawn = panels(store, teachers and teachers.path, pair[0].path, pair[1].path)
    if not drawn:
        return files, pictures, ["Figure 3 is left out: the test split has no sample with a truth to show."]
    saved = save(qualitative_figure(drawn), out / "figure3")
    students = f"Student: {full_name(pair[0].arch)}, seed {pair[0].seed}"
    caption = f"{FIGURE3} {students}" + (f"; teachers: {full_name(teachers.arch)}." if teachers else ".")
    alt = "Image, truth and the networks' masks for " + ", ".join(panel.anatomy for panel in drawn)
    pictures.append(Picture("figure3", caption, alt, saved[0]))
    return files + saved, pictures, []


def students_shown(rows: Sequence[Row]) -> tuple[Result, Result] | None:
    """Baseline and distilled run, with weights, of the smallest architecture that has both, at their lowest seed."""
    arms = {(row.arch, row.kd): row for row in rows if row.layout == "shared"}
    pairs = []
    for (arch, kd), row in arms.items():
        if kd and (arch, False) in arms:
            old, new = ({r.seed: r for r in arm.results if (r.path / WEIGHTS).exists()} for arm in (arms[arch, False], row))
            pairs += [(row.params_m or float("inf"), arch, seed, old[seed], new[seed]) for seed in old if seed in new]
    return min(pairs, key=lambda pair: pair[:3])[3:] if pairs else None


def teachers_shown(rows: Sequence[Row], student: Result) -> Result | None:
    """The teachers a student was distilled from, if they are among the rows with all weights, or None."""
    found = teachers_of(rows, student)
    whole = found and all((found.path / anatomy / WEIGHTS).exists() for anatomy in found.anatomies)
    return found if whole else None


def _in_order(tables: list[str], pictures: list[str]) -> list[str]:
    """Tables and pictures by turns, the last of the tables (by anatomy, the widest) at the end."""
    first, *others = pictures or [""]
    return [*tables[:-2], first, tables[-2], *others, tables[-1]]


def _markdown(pairs: list[tuple[str, str]], notes: list[str], tables: list[Table], pictures: list[Picture]) -> str:
    lines = [f"# {TITLE}", ""]
    lines += [f"- {term}: {plain(text)}" for term, text in pairs]
    for note in notes:
        lines += ["", f"> {plain(note)}"]
    images = [f"![{plain(picture.alt)}]({picture.path.name})\n\n{plain(picture.caption)}\n" for picture in pictures]
    blocks = _in_order([markdown(table) for table in tables], images)
    return "\n".join([*lines, "", "\n".join(block for block in blocks if block)])


def _row(row: Row, paper: Paper) -> dict:
    said = paper.get(row.key)
    return {
        "arch": row.arch,
        "layout": row.layout,
        "kd": row.kd,
        "seeds": list(row.seeds),
        "params_m": row.params_m,
        "mean_dice": row.mean_dice,
        "sd_dice": row.spread,
        "dice": {anatomy: row.dice(anatomy) for anatomy in row.results[0].anatomies},
        "runs": [str(result.path) for result in row.results],
        "paper": said and {"params_m": said.params_m, "dice": said.dice / 100, "ms": said.ms, "fps": said.fps},
    }
