"""The report's tables as pure functions of rows: Tables 1 and 2 as the paper has them, and what distillation gains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtkd_cache.study.published import table1 as published_table1
from mtkd_cache.study.published import table2 as published_table2
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
    f"{DAGGER} MiniNetV2 shared: the official cut into encoder and decoder gives 1.52 M with 11 decoders; "
    "the paper's 1.1 M matches no contiguous cut of the network."
)
TIME_NOTE = (
    f"ms and FPS are for all anatomies of one image, of 1280{TIMES}720 pixels if no other size is named; ours in the network's "
    "fast form (mtkd_cache.models.fast). ‡ The paper's were measured on another machine: compare the rows of a column, not "
    "the columns."
)
NAMES = (Column("Architecture"), Column("Encoder"), Column("Layout"), Column("KD"))
EMPTY = Cell("")

Key = tuple[str, str, bool]


@dataclass(frozen=True)
class Reference:
    """What the paper reports of one (arch, layout, kd). Dice in percent; ms and fps on its RTX 3090 at 1280x720."""

    params_m: float
    dice: float
    ms: float
    fps: float
    by_anatomy: Mapping[str, float]


Paper = Mapping[Key, Reference]


@dataclass(frozen=True)
class Gain:
    """Both training arms of one architecture over the seeds they have in common. Dice are fractions 0..1."""

    arch: str
    seeds: tuple[int, ...]
    baseline: tuple[float, ...]
    distilled: tuple[float, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        return tuple(new - old for old, new in zip(self.baseline, self.distilled, strict=True))


def references() -> Paper:
    """The paper's Tables 1 and 2 by (arch, layout, kd), in their order."""
    by_anatomy = {(row["arch"], row["layout"], row["kd"]): row["dice"] for row in published_table2()}
    found = {}
    for row in published_table1():
        key = row["arch"], row["layout"], row["kd"]
        found[key] = Reference(row["params_m"], row["dice"], row["ms"], row["fps"], by_anatomy[key])
    return found


def table1(rows: Sequence[Row], paper: Paper, timings: Timings, *, comparable: bool) -> Table:
    """Parameters, mean Dice and time of every row beside the paper's.

    comparable: our Dice is laid beside the paper's; then its rows without a run are listed too, and differences shown.
    """
    ours = {row.key: row for row in rows}
    keys = list(ours)
    if comparable:
        keys = [*paper, *(key for key in ours if key not in paper)]
    devices = sorted({device for entry in timings.values() for device in entry})
    columns = [*NAMES, Column("ours", "Parameters, M", True), Column("paper", "Parameters, M", True)]
    several = any(row.spread is not None for row in rows)
    titles = ["ours", *["± sd"] * several, "seeds", "paper", *["difference"] * comparable]
    columns += [Column(title, "Mean Dice, %", True) for title in titles]
    for device in [*(f"ours: {device}" for device in devices), PAPER_DEVICE] if devices else ():
        columns += [Column(unit, device, True) for unit in ("ms", "FPS")]
    parts = []
    for part in _parts(keys):
        lines = []
        for key in part:
            row, said = ours.get(key), paper.get(key)
            cells = [*_names(key), *_size_cells(row, said), *_dice_cells(row, said, several)]
            if comparable:
                cells.append(_difference_cell(row and said and row.mean_dice and 100 * row.mean_dice - said.dice))
            lines.append([*cells, *_time_cells(timings.get(key[:2], {}), said, devices)])
        parts.append(lines)
    notes = [MARKS_NOTE + (f" {SPREAD_NOTE}" if several else "")]
    if devices:
        notes.append(TIME_NOTE)
    if any(key[:2] == MININET for key in keys):
        notes.append(MININET_NOTE)
    title = f"Table 1. Parameters{', mean Dice and time' if devices else ' and mean Dice'}"
    return Table("table1", title, tuple(columns), parts, notes)


def _parts(keys: Sequence[Key]) -> list[list[Key]]:
    """The keys by layout and arm, in the paper's order; empty parts are left out."""
    arms = [(layout, kd) for layout in LAYOUTS for kd in (False, True)]
    parts = [[key for key in keys if key[1:] == arm] for arm in arms]
    return [part for part in parts if part]


def _names(key: Key) -> list[Cell]:
    """The cells every row of Table 1 begins with."""
    arch, layout, kd = key
    architecture, encoder = display_name(arch)
    mark = f" {DAGGER}" if (arch, layout) == MININET else ""
    names = [Cell(architecture, architecture), Cell(encoder + mark, encoder)]
    kind = "kd" if kd else ""
    return [*names, Cell(MARKS[layout], layout, kind=kind), Cell("yes" if kd else "no", int(kd), kind=kind)]


def _size_cells(row: Row | None, said: Reference | None) -> list[Cell]:
    params = row.params_m if row else None
    cells = [Cell(fixed(params, 2 if params and params < 100 else 1), params)]
    if said is None:
        return [*cells, EMPTY]
    return [*cells, Cell(f"{said.params_m:.1f}", said.params_m, kind="paper")]


def _dice_cells(row: Row | None, said: Reference | None, several: bool) -> list[Cell]:
    """Our mean, its spread if there are several seeds anywhere, the number of seeds, the paper's mean."""
    paper = Cell(f"{said.dice:.1f}", said.dice, kind="paper") if said else EMPTY
    if row is None:
        return [EMPTY] * (2 + several) + [paper]
    spreads = [Cell(percent(row.spread), row.spread)] * several
    return [Cell(percent(row.mean_dice), row.mean_dice), *spreads, Cell(str(len(row.seeds)), len(row.seeds)), paper]


def _time_cells(measured: Mapping[str, Timing], said: Reference | None, devices: Sequence[str]) -> list[Cell]:
    cells = []
    for device in devices:
        time = measured.get(device)
        fps = time and fixed(time.fps, 0 if time.fps >= 10 else 1)
        cells += [Cell(fixed(time.ms, 1), time.ms), Cell(fps, time.fps)] if time else [EMPTY, EMPTY]
    if devices and said:
        return [*cells, Cell(f"{said.ms:.0f}", said.ms, kind="paper"), Cell(f"{said.fps:.0f}", said.fps, kind="paper")]
    return [*cells, EMPTY, EMPTY] if devices else []


def _difference_cell(points: float | None, sd: float | None = None) -> Cell:
    """A signed difference in percentage points, coloured by its sign."""
    text = signed(points, sd)
    return Cell(text, points, kind="up" if text.startswith("+") else "down" if text.startswith(MINUS) else "")


def table2(rows: Sequence[Row], anatomies: Sequence[str], paper: Paper) -> Table:
    """Dice of every row by anatomy, the mean over the seeds; below it the paper's and the difference, unless `paper` is empty."""
    ours = {row.key: row for row in rows}
    columns = (Column("Network"), Column("Layout"), *(Column(spoken(anatomy), number=True) for anatomy in anatomies))
    parts = []
    for part in _parts(list(ours)):
        lines = []
        for arch, layout, kd in part:
            row, said = ours[arch, layout, kd], paper.get((arch, layout, kd))
            name, mark = full_name(arch), MARKS[layout] + (" + KD" if kd else "")
            cells = [Cell(name, name), Cell(mark, mark, kind="kd" if kd else "")]
            cells += [_beside(row.dice(anatomy), said and said.by_anatomy[anatomy], bool(paper)) for anatomy in anatomies]
            lines.append(cells)
        parts.append(lines)
    note = "Dice in percent, the mean over the seeds"
    note += "; below it the paper's and, in brackets, the difference." if paper else "."
    return Table("table2", "Table 2. Dice by anatomy", columns, parts, [note])


def _beside(dice: float | None, said: float | None, compared: bool) -> Cell:
    """Dice in percent over the paper's, with the difference in brackets where there are both."""
    below = fixed(said, 0) if compared else None
    if below and dice is not None:
        below += f" ({signed(100 * dice - said)})"
    return Cell(percent(dice), dice, below)


def gains(rows: Sequence[Row]) -> list[Gain]:
    """One gain for each architecture that was trained with and without distillation, over the seeds both arms have."""
    arms = {(row.arch, row.kd): row for row in rows if row.layout == "shared"}
    found = []
    for (arch, kd), row in arms.items():
        if kd and (arch, False) in arms:
            old = {result.seed: result.mean_dice for result in arms[arch, False].results}
            new = {result.seed: result.mean_dice for result in row.results}
            seeds = tuple(seed for seed in old if None not in (old[seed], new.get(seed)))
            found.append(Gain(arch, seeds, tuple(old[seed] for seed in seeds), tuple(new[seed] for seed in seeds)))
    return found


def gain_table(found: Sequence[Gain], paper: Paper) -> Table:
    """Baseline, distilled, their difference over the common seeds, each seed's, and the paper's if `paper` has it."""
    group = "Mean Dice, %"
    columns = [Column("Architecture"), Column("Encoder")]
    columns += [Column(title, group, True) for title in ("without KD", "with KD", "difference")]
    columns += [Column("each seed's difference")] + [Column("paper's difference", number=True)] * bool(paper)
    notes = [
        "Means over the seeds both arms have; differences in percentage points"
        + (", ± their sample standard deviation." if any(len(gain.seeds) > 1 for gain in found) else ".")
    ]
    rows = [_gain_row(gain, paper) for gain in found]
    return Table("gain", "What distillation gains", tuple(columns), [rows], notes)


def _gain_row(gain: Gain, paper: Paper) -> list[Cell]:
    points = [100 * difference for difference in gain.differences]
    each = ", ".join(f"seed {seed}: {signed(point)}" for seed, point in zip(gain.seeds, points, strict=True))
    arms = (mean(gain.baseline), mean(gain.distilled))
    cells = [Cell(name, name) for name in display_name(gain.arch)]
    cells += [Cell(percent(dice), dice) for dice in arms]
    cells += [_difference_cell(mean(points), spread(points)), Cell(each or "no seed in common", mean(points))]
    if paper:
        keys = [(gain.arch, "shared", kd) for kd in (False, True)]
        said = paper[keys[1]].dice - paper[keys[0]].dice if all(key in paper for key in keys) else None
        cells.append(Cell(signed(said), said, kind="paper"))
    return cells
