"""The report's tables as pure functions of rows: Tables 1 and 2 as the paper has them, and what distillation gains."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mtkd_cache.study.published import Key, Paper, Published
from mtkd_cache.study.report.collect import LAYOUTS, Row, Timing, Timings, mean, spread
from mtkd_cache.study.report.formats import MINUS, TIMES, display_name, fixed, full_name, percent, signed, spoken
from mtkd_cache.study.report.markup import Cell, Column, Table

MARKS = {"separate": "■ separate", "shared": "★ shared"}
PAPER_DEVICE = "paper: RTX 3090 ‡"
DAGGER = "†"
MARKS_NOTE = "■ one network an anatomy, ★ one encoder shared by all decoders; KD: trained with multi-teacher distillation."
SPREAD_NOTE = "± sd is the sample standard deviation over the seeds."
MININET = ("mininetv2", "shared")
MININET_NOTE = (
    f"{DAGGER} MiniNetV2 shared: the official split into encoder and decoder gives 1.52 M with 11 decoders; "
    "the paper's 1.1 M matches no contiguous split of the network."
)
TIME_NOTE = (
    f"ms and FPS are for all anatomies of one image, of 1280{TIMES}720 pixels if no other size is named; ours in the network's "
    "fast form (mtkd_cache.models.fast). ‡ The paper's were measured on another machine: compare the rows of a column, not "
    "the columns."
)
EMPTY = Cell("")

CellOf = Callable[[Key], Cell]


@dataclass(frozen=True)
class Gain:
    """Both training arms of an architecture. dice: by seed that both have, the mean Dice (0..1) without and with distillation."""

    arch: str
    dice: dict[int, tuple[float, float]]

    @property
    def differences(self) -> dict[int, float]:
        return {seed: distilled - baseline for seed, (baseline, distilled) in self.dice.items()}


def table1(rows: Sequence[Row], paper: Paper, timings: Timings, *, comparable: bool) -> Table:
    """Parameters, mean Dice and time of every row beside the paper's.

    comparable: our Dice is compared with the paper's: its rows without a run are listed too, and differences shown.
    """
    ours = {row.key: row for row in rows}
    keys = [*paper, *(key for key in ours if key not in paper)] if comparable else list(ours)
    several = any(row.spread is not None for row in rows)
    devices = sorted({device for times in timings.values() for device in times})
    parameters, dice = "Parameters, M", "Mean Dice, %"
    columns = {
        Column("Architecture"): lambda key: _text(display_name(key[0])[0]),
        Column("Encoder"): _encoder,
        Column("Layout"): lambda key: Cell(MARKS[key[1]], key[1], kind="kd" if key[2] else ""),
        Column("KD"): lambda key: Cell("yes", 1, kind="kd") if key[2] else Cell("no", 0),
        Column("ours", parameters, True): _measured(ours, _size),
        Column("paper", parameters, True): _published(paper, lambda row: row.params_m, 1),
        Column("ours", dice, True): _measured(ours, lambda row: Cell(percent(row.mean_dice), row.mean_dice)),
        **({Column("± sd", dice, True): _measured(ours, lambda row: Cell(percent(row.spread), row.spread))} if several else {}),
        Column("seeds", dice, True): _measured(ours, lambda row: Cell(str(len(row.seeds)), len(row.seeds))),
        Column("paper", dice, True): _published(paper, lambda row: row.dice, 1),
        **({Column("difference", dice, True): lambda key: _gap(ours.get(key), paper.get(key))} if comparable else {}),
        **_time_columns(devices, timings, paper),
    }
    notes = [MARKS_NOTE + (f" {SPREAD_NOTE}" if several else ""), *([TIME_NOTE] if devices else [])]
    if any(key[:2] == MININET for key in keys):
        notes.append(MININET_NOTE)
    title = f"Table 1. Parameters{', mean Dice and time' if devices else ' and mean Dice'}"
    return Table("table1", title, tuple(columns), _parts(keys, columns.values()), notes)


def _parts(keys: Iterable[Key], cells: Iterable[CellOf]) -> list[list[list[Cell]]]:
    """The keys' rows of cells by layout and arm, in the paper's order; empty parts are left out."""
    arms = [(layout, kd) for layout in LAYOUTS for kd in (False, True)]
    parts = [[[cell(key) for cell in cells] for key in keys if key[1:] == arm] for arm in arms]
    return [part for part in parts if part]


def _text(text: str) -> Cell:
    return Cell(text, text)


def _encoder(key: Key) -> Cell:
    encoder = display_name(key[0])[1]
    return Cell(f"{encoder} {DAGGER}", encoder) if key[:2] == MININET else _text(encoder)


def _size(row: Row) -> Cell:
    return Cell(fixed(row.params_m, 2 if row.params_m and row.params_m < 100 else 1), row.params_m)


def _measured(ours: dict[Key, Row], cell: Callable[[Row], Cell]) -> CellOf:
    """A column of our rows."""
    return lambda key: cell(ours[key]) if key in ours else EMPTY


def _published(paper: Paper, value: Callable[[Published], float], digits: int) -> CellOf:
    """A column of the paper's figures."""
    return lambda key: Cell(fixed(value(paper[key]), digits), value(paper[key]), kind="paper") if key in paper else EMPTY


def _gap(row: Row | None, published: Published | None) -> Cell:
    """Our mean Dice less the paper's."""
    return _difference(100 * row.mean_dice - published.dice) if row and row.mean_dice and published else EMPTY


def _difference(points: float | None, sd: float | None = None) -> Cell:
    """A signed difference in percentage points, colored by its sign."""
    text = signed(points, sd)
    return Cell(text, points, kind="up" if text.startswith("+") else "down" if text.startswith(MINUS) else "")


def _time_columns(devices: Sequence[str], timings: Timings, paper: Paper) -> dict[Column, CellOf]:
    """Milliseconds and frames a second on each of our devices, then the paper's; none without a device."""

    def column(device: str, cell: Callable[[Timing], Cell]) -> CellOf:
        return lambda key: cell(timings[key[:2]][device]) if device in timings.get(key[:2], {}) else EMPTY

    columns: dict[Column, CellOf] = {}
    for device in devices:
        group = f"ours: {device}"
        columns[Column("ms", group, True)] = column(device, lambda time: Cell(fixed(time.ms, 1), time.ms))
        columns[Column("FPS", group, True)] = column(
            device, lambda time: Cell(fixed(time.fps, 0 if time.fps >= 10 else 1), time.fps)
        )
    if devices:
        columns[Column("ms", PAPER_DEVICE, True)] = _published(paper, lambda row: row.ms, 0)
        columns[Column("FPS", PAPER_DEVICE, True)] = _published(paper, lambda row: row.fps, 0)
    return columns


def table2(rows: Sequence[Row], anatomies: Sequence[str], paper: Paper) -> Table:
    """Dice of every row by anatomy, the mean over the seeds; below it the paper's and the difference, unless `paper` is empty."""
    ours = {row.key: row for row in rows}

    def beside(anatomy: str) -> CellOf:
        def cell(key: Key) -> Cell:
            dice = ours[key].dice(anatomy)
            published = paper[key].by_anatomy[anatomy] if key in paper else None
            below = fixed(published, 0) if paper else None
            if published is not None and dice is not None:
                below = f"{below} ({signed(100 * dice - published)})"
            return Cell(percent(dice), dice, below)

        return cell

    columns: dict[Column, CellOf] = {
        Column("Network"): lambda key: _text(full_name(key[0])),
        Column("Layout"): lambda key: Cell(
            mark := MARKS[key[1]] + (" + KD" if key[2] else ""), mark, kind="kd" if key[2] else ""
        ),
        **{Column(spoken(anatomy), number=True): beside(anatomy) for anatomy in anatomies},
    }
    note = "Dice in percent, the mean over the seeds"
    note += "; below it the paper's and, in brackets, the difference." if paper else "."
    return Table("table2", "Table 2. Dice by anatomy", tuple(columns), _parts(ours, columns.values()), [note])


def gains(rows: Sequence[Row]) -> list[Gain]:
    """One gain for each architecture that was trained with and without distillation, over the seeds both arms have."""
    arms = {(row.arch, row.kd): {r.seed: r.mean_dice for r in row.results} for row in rows if row.layout == "shared"}
    pairs = [(arch, arms[arch, False], arm) for (arch, kd), arm in arms.items() if kd and (arch, False) in arms]
    return [Gain(arch, _common(baseline, distilled)) for arch, baseline, distilled in pairs]


def _common(baseline: dict[int, float | None], distilled: dict[int, float | None]) -> dict[int, tuple[float, float]]:
    pairs = {seed: (dice, distilled.get(seed)) for seed, dice in baseline.items()}
    return {seed: (old, new) for seed, (old, new) in pairs.items() if old is not None and new is not None}


def gain_table(rows: Sequence[Gain], paper: Paper) -> Table:
    """Baseline, distilled, their difference over the common seeds, each seed's, and the paper's if `paper` has it."""
    group = "Mean Dice, %"
    columns = [Column("Architecture"), Column("Encoder")]
    columns += [Column(title, group, True) for title in ("without KD", "with KD", "difference")]
    columns += [Column("each seed's difference")] + [Column("paper's difference", number=True)] * bool(paper)
    notes = [
        "Means over the seeds both arms have; differences in percentage points"
        + (", ± their sample standard deviation." if any(len(gain.dice) > 1 for gain in rows) else ".")
    ]
    return Table("gain", "What distillation gains", tuple(columns), [[_gain_row(gain, paper) for gain in rows]], notes)


def _gain_row(gain: Gain, paper: Paper) -> list[Cell]:
    points = {seed: 100 * difference for seed, difference in gain.differences.items()}
    each = ", ".join(f"seed {seed}: {signed(point)}" for seed, point in points.items())
    gained = mean(points.values())
    cells = [_text(name) for name in display_name(gain.arch)]
    for arm in (0, 1):
        dice = mean(pair[arm] for pair in gain.dice.values())
        cells.append(Cell(percent(dice), dice))
    cells += [_difference(gained, spread(points.values())), Cell(each or "no seed in common", gained)]
    if paper:
        baseline, distilled = (paper.get((gain.arch, "shared", kd)) for kd in (False, True))
        published = distilled.dice - baseline.dice if baseline and distilled else None
        cells.append(Cell(signed(published), published, kind="paper"))
    return cells
