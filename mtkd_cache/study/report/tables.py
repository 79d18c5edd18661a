"""The report's tables as pure functions of rows: Tables 1 and 2 as the paper has them, and Table 3 at the operating points."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from mtkd_cache.study.published import Key, Paper, Published
from mtkd_cache.study.report.collect import LAYOUTS, Row, RowKey, mean, spread
from mtkd_cache.study.report.formats import MINUS, TIMES, display_name, fixed, percent, signed, span, spoken
from mtkd_cache.study.report.markup import Cell, Column, Table
from mtkd_cache.study.report.timings import Timings

MARKS = {"separate": "■ separate", "shared": "★ shared", "shared-refine": "✚ shared-refine", "joint": "◆ joint"}
LAYOUT_WORDS = {
    "separate": "■ one network an anatomy",
    "shared": "★ one encoder shared by all decoders",
    "shared-refine": "✚ with a shared look at the image",
    "joint": "◆ one decoder with a channel an anatomy",
}
PAPER_DEVICE = "paper: RTX 3090 ‡"
DAGGER = "†"
AT_HALF, AT_POINT = "at probability 0.5", "at operating points"
KD_NOTE = "KD: trained with multi-teacher distillation."
SPREAD_NOTE = "± sd is the sample standard deviation over the seeds."
INTERVAL_NOTE = "95 % intervals are over the patients of the test split (bootstrap), for these trained networks."
MININET = ("mininetv2", "shared")
MININET_NOTE = (
    f"{DAGGER} MiniNetV2 shared: the official split into encoder and decoder gives 1.52 M with 11 decoders; "
    "the paper's 1.1 M matches no contiguous split of the network."
)
TIME_NOTE = (
    f"ms and FPS are for all anatomies of one image, of 1280{TIMES}720 pixels if no other size is named; ours in the network's "
    "fast form (mtkd_cache.models.fast)."
)
PAPER_TIME_NOTE = "‡ The paper's times were measured on another machine: compare the rows of a column, not the columns."
EMPTY = Cell("")

CellOf = Callable[[RowKey], Cell]


def table1(rows: Sequence[Row], paper: Paper, timings: Timings) -> Table:
    """Parameters, mean Dice and time of every row.

    paper: the published rows to stand beside ours, also those without a run of ours; empty where the data are not the paper's.
    """
    keys = _with_published(rows, paper)
    means, spreads = {row.key: row.mean_dice for row in rows}, {row.key: row.spread for row in rows if row.spread is not None}
    bounds = {row.key: interval for row in rows if (interval := row.intervals()[0])}
    points = {row.key: row.means_at_point for row in rows if row.means_at_point}
    times = _time_columns(keys, timings, paper)
    parameters, dice = "Parameters, M", "Mean Dice, %"
    columns = {
        Column("Architecture"): lambda key: text_cell(display_name(key[0])[0]),
        Column("Encoder"): lambda key: _encoder(key, bool(paper)),
        **({Column("Name"): lambda key: text_cell(key[3])} if any(row.label for row in rows) else {}),
        Column("Layout"): lambda key: Cell(MARKS[key[1]], key[1], kind="kd" if key[2] else ""),
        Column("KD"): lambda key: Cell("yes", 1, kind="kd") if key[2] else Cell("no", 0),
        Column("ours", parameters, True): _numbers(
            {row.key: row.params_m for row in rows}, lambda size: fixed(size, 2 if size < 100 else 1)
        ),
        **({Column("paper", parameters, True): _published(paper, lambda row: row.params_m, 1)} if paper else {}),
        Column("ours", dice, True): _numbers(means, percent),
        **({Column("95 % interval", dice, True): lambda key: Cell(span(bounds.get(key), 1))} if bounds else {}),
        **({Column("± sd", dice, True): _numbers(spreads, percent)} if spreads else {}),
        **({Column("at operating points", dice, True): lambda key: _mean_and_spread(points.get(key))} if points else {}),
        Column("seeds", dice, True): _numbers({row.key: len(row.seeds) for row in rows}, str),
        **_beside_the_papers(means, paper, dice),
        **times,
    }
    title = f"Table 1. Parameters{', mean Dice and time' if times else ' and mean Dice'}"
    notes = _notes(rows, keys, bounded=bool(bounds), beside_paper=bool(paper), timed=bool(times))
    return Table("table1", title, tuple(columns), _parts(keys, columns.values()), notes)


def _with_published(rows: Sequence[Row], paper: Paper) -> list[RowKey]:
    """The rows' keys in the paper's order, among those of the paper's rows without a run."""
    own: dict[Key, list[RowKey]] = {}
    for row in rows:
        own.setdefault(row.published_key, []).append(row.key)
    keys = [key for published in paper for key in own.get(published, [(*published, "")])]
    return list(dict.fromkeys([*keys, *(row.key for row in rows)]))


def _beside_the_papers(means: Mapping[RowKey, float | None], paper: Paper, group: str) -> dict[Column, CellOf]:
    """The paper's Dice and the difference from it."""
    if not paper:
        return {}
    gaps = {key: 100 * score - paper[key[:3]].dice for key, score in means.items() if score and key[:3] in paper}
    return {
        Column("paper", group, True): _published(paper, lambda row: row.dice, 1),
        Column("difference", group, True): lambda key: difference_cell(gaps.get(key)),
    }


def _notes(rows: Sequence[Row], keys: Sequence[RowKey], *, bounded: bool, beside_paper: bool, timed: bool) -> list[str]:
    """What stands below Table 1."""
    shown = {key[1] for key in keys}
    explained = [f"{', '.join(words for layout, words in LAYOUT_WORDS.items() if layout in shown)}; {KD_NOTE}"]
    explained += [SPREAD_NOTE] if any(row.spread is not None for row in rows) else []
    explained += [INTERVAL_NOTE] if bounded else []
    notes = [" ".join(explained)]
    if timed:
        notes.append(f"{TIME_NOTE} {PAPER_TIME_NOTE}" if beside_paper else TIME_NOTE)
    if any(row.means_at_point for row in rows):
        columns = "Ours and the paper's" if beside_paper else "Ours"
        notes.append(f"{columns}: {AT_HALF}; {AT_POINT}: see Table 3.")
    if beside_paper and any(key[:2] == MININET for key in keys):
        notes.append(MININET_NOTE)
    return notes


def _parts(keys: Iterable[RowKey], cells: Iterable[CellOf]) -> list[list[list[Cell]]]:
    """The keys' rows of cells by layout and arm, in the paper's order; empty parts are left out."""
    arms = [(layout, kd) for layout in LAYOUTS for kd in (False, True)]
    parts = [[[cell(key) for cell in cells] for key in keys if key[1:3] == arm] for arm in arms]
    return [part for part in parts if part]


def _numbers(values: Mapping[RowKey, float | None], shown: Callable[[float], str]) -> CellOf:
    """A column of numbers; a row that has none is empty."""
    return lambda key: EMPTY if (value := values.get(key)) is None else Cell(shown(value), value)


def _mean_and_spread(values: Sequence[float] | None) -> Cell:
    return EMPTY if not values else Cell(percent(mean(values), spread(values)), mean(values))


def text_cell(text: str, kind: str = "") -> Cell:
    return Cell(text, text, kind=kind)


def _encoder(key: RowKey, beside_paper: bool) -> Cell:
    encoder = display_name(key[0])[1]
    return Cell(f"{encoder} {DAGGER}", encoder) if beside_paper and key[:2] == MININET else text_cell(encoder)


def _published(paper: Paper, figure: Callable[[Published], float], digits: int) -> CellOf:
    """A column of the paper's figures."""
    values = {key: figure(row) for key, row in paper.items()}
    return lambda key: EMPTY if key[:3] not in values else Cell(fixed(values[key[:3]], digits), values[key[:3]], kind="paper")


def difference_cell(points: float | None, sd: float | None = None) -> Cell:
    """A signed difference in percentage points, colored by its sign."""
    text = signed(points, sd)
    return Cell(text, points, kind="up" if text.startswith("+") else "down" if text.startswith(MINUS) else "")


def _time_columns(keys: Sequence[RowKey], timings: Timings, paper: Paper) -> dict[Column, CellOf]:
    """Milliseconds and frames a second on each of our devices, then those of `paper`; none without a device."""
    columns: dict[Column, CellOf] = {}
    for device in sorted({device for times in timings.values() for device in times}):
        times = {key: timings[key[:2]][device] for key in keys if device in timings.get(key[:2], {})}
        milliseconds, rates = {key: time.ms for key, time in times.items()}, {key: time.fps for key, time in times.items()}
        columns[Column("ms", f"ours: {device}", True)] = _numbers(milliseconds, lambda ms: fixed(ms, 1))
        columns[Column("FPS", f"ours: {device}", True)] = _numbers(rates, lambda fps: fixed(fps, 0 if fps >= 10 else 1))
    if columns and paper:
        columns[Column("ms", PAPER_DEVICE, True)] = _published(paper, lambda row: row.ms, 0)
        columns[Column("FPS", PAPER_DEVICE, True)] = _published(paper, lambda row: row.fps, 0)
    return columns


def table2(rows: Sequence[Row], anatomies: Sequence[str], paper: Paper, *, at_point: bool = False) -> Table:
    """Dice of every row by anatomy, the mean over the seeds; below it the paper's and the difference, unless `paper` is empty.

    at_point: at the operating points, of the rows that have them, as Table 3.
    """
    ours = {row.key: row for row in rows if row.means_at_point or not at_point}
    bounds = {key: row.intervals("dice_at_operating_point" if at_point else "dice")[1] for key, row in ours.items()}

    def beside(key: RowKey, anatomy: str) -> Cell:
        dice = ours[key].dice_at_point(anatomy) if at_point else ours[key].dice(anatomy)
        published = paper[key[:3]].by_anatomy[anatomy] if key[:3] in paper else None
        below = fixed(published, 0) if paper else None
        if published is not None and dice is not None:
            below = f"{below} ({signed(100 * dice - published)})"
        return Cell(percent(dice), dice, below, interval=span(bounds[key].get(anatomy), 0))

    columns: dict[Column, CellOf] = {
        Column("Network"): lambda key: text_cell(ours[key].name),
        Column("Layout"): lambda key: text_cell(f"{MARKS[key[1]]} + KD", "kd") if key[2] else text_cell(MARKS[key[1]]),
        **{Column(spoken(anatomy), number=True): partial(beside, anatomy=anatomy) for anatomy in anatomies},
    }
    note = f"Dice in percent, {AT_POINT if at_point else AT_HALF}, the mean over the seeds"
    note += ", with its 95 % interval over patients" * any(any(each.values()) for each in bounds.values())
    note += "; below it the paper's and, in brackets, the difference." if paper else "."
    name, title = ("table3", f"Table 3. Dice by anatomy {AT_POINT}") if at_point else ("table2", "Table 2. Dice by anatomy")
    return Table(name, title, tuple(columns), _parts(ours, columns.values()), [note])
