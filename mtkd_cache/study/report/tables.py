"""The report's tables as pure functions of rows: Tables 1 and 2 as the paper has them, and what distillation gains."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mtkd_cache.study.published import Key, Paper, Published
from mtkd_cache.study.report.collect import LAYOUTS, Row, Timings, mean, spread
from mtkd_cache.study.report.formats import MINUS, TIMES, display_name, fixed, full_name, percent, signed, span, spoken
from mtkd_cache.study.report.markup import Cell, Column, Table

MARKS = {"separate": "■ separate", "shared": "★ shared"}
PAPER_DEVICE = "paper: RTX 3090 ‡"
DAGGER = "†"
AT_HALF, AT_POINT = "at probability 0.5, as in the paper", "at operating points"
THRESHOLD_NOTE = (
    "At probability 0.5 a head is judged by logit 0, as in the paper; at its operating point by the threshold with the best Dice "
    "on the validation split. Logits trained on few positives and many negatives lie low, which costs most of what a head knows "
    "at 0.5. What distillation gains at 0.5 alone, a threshold gains without a teacher."
)
MARKS_NOTE = "■ one network an anatomy, ★ one encoder shared by all decoders; KD: trained with multi-teacher distillation."
SPREAD_NOTE = "± sd is the sample standard deviation over the seeds."
INTERVAL_NOTE = "95 % intervals are over the patients of the test split (bootstrap), for these trained networks."
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
    """Both training arms of an architecture, judged at probability 0.5 or, at_point, at the operating points.

    dice: by seed that both have, the mean Dice (0..1) without and with distillation.
    """

    arch: str
    dice: dict[int, tuple[float, float]]
    at_point: bool = False

    @property
    def differences(self) -> dict[int, float]:
        return {seed: distilled - baseline for seed, (baseline, distilled) in self.dice.items()}


def table1(rows: Sequence[Row], paper: Paper, timings: Timings, *, comparable: bool) -> Table:
    """Parameters, mean Dice and time of every row beside the paper's.

    comparable: our Dice is compared with the paper's: its rows without a run are listed too, and differences shown.
    """
    keys = list(dict.fromkeys([*(paper if comparable else ()), *(row.key for row in rows)]))
    means, spreads = {row.key: row.mean_dice for row in rows}, {row.key: row.spread for row in rows if row.spread is not None}
    bounds = {row.key: interval for row in rows if (interval := row.intervals()[0])}
    points = {row.key: row.means_at_point for row in rows if row.means_at_point}
    gaps = {key: 100 * score - paper[key].dice for key, score in means.items() if score and key in paper}
    times = _time_columns(keys, timings, paper)
    parameters, dice = "Parameters, M", "Mean Dice, %"
    columns = {
        Column("Architecture"): lambda key: _text(display_name(key[0])[0]),
        Column("Encoder"): _encoder,
        Column("Layout"): lambda key: Cell(MARKS[key[1]], key[1], kind="kd" if key[2] else ""),
        Column("KD"): lambda key: Cell("yes", 1, kind="kd") if key[2] else Cell("no", 0),
        Column("ours", parameters, True): _numbers(
            {row.key: row.params_m for row in rows}, lambda size: fixed(size, 2 if size < 100 else 1)
        ),
        Column("paper", parameters, True): _published(paper, lambda row: row.params_m, 1),
        Column("ours", dice, True): _numbers(means, percent),
        **({Column("95 % interval", dice, True): lambda key: Cell(span(bounds.get(key), 1))} if bounds else {}),
        **({Column("± sd", dice, True): _numbers(spreads, percent)} if spreads else {}),
        **({Column("at operating points", dice, True): lambda key: _mean_and_spread(points.get(key))} if points else {}),
        Column("seeds", dice, True): _numbers({row.key: len(row.seeds) for row in rows}, str),
        Column("paper", dice, True): _published(paper, lambda row: row.dice, 1),
        **({Column("difference", dice, True): lambda key: _difference(gaps.get(key))} if comparable else {}),
        **times,
    }
    notes = [MARKS_NOTE + f" {SPREAD_NOTE}" * bool(spreads) + f" {INTERVAL_NOTE}" * bool(bounds), *([TIME_NOTE] if times else [])]
    notes += [f"Ours and the paper's: {AT_HALF}; {AT_POINT}: see Table 3."] if points else []
    if any(key[:2] == MININET for key in keys):
        notes.append(MININET_NOTE)
    title = f"Table 1. Parameters{', mean Dice and time' if times else ' and mean Dice'}"
    return Table("table1", title, tuple(columns), _parts(keys, columns.values()), notes)


def _parts(keys: Iterable[Key], cells: Iterable[CellOf]) -> list[list[list[Cell]]]:
    """The keys' rows of cells by layout and arm, in the paper's order; empty parts are left out."""
    arms = [(layout, kd) for layout in LAYOUTS for kd in (False, True)]
    parts = [[[cell(key) for cell in cells] for key in keys if key[1:] == arm] for arm in arms]
    return [part for part in parts if part]


def _numbers(values: Mapping[Key, float | None], shown: Callable[[float], str], kind: str = "") -> CellOf:
    """A column of numbers; a row that has none is empty."""
    return lambda key: EMPTY if (value := values.get(key)) is None else Cell(shown(value), value, kind=kind)


def _mean_and_spread(values: Sequence[float] | None) -> Cell:
    return EMPTY if not values else Cell(percent(mean(values), spread(values)), mean(values))


def _text(text: str, kind: str = "") -> Cell:
    return Cell(text, text, kind=kind)


def _encoder(key: Key) -> Cell:
    encoder = display_name(key[0])[1]
    return Cell(f"{encoder} {DAGGER}", encoder) if key[:2] == MININET else _text(encoder)


def _published(paper: Paper, figure: Callable[[Published], float], digits: int) -> CellOf:
    """A column of the paper's figures."""
    return _numbers({key: figure(row) for key, row in paper.items()}, lambda value: fixed(value, digits), "paper")


def _difference(points: float | None, sd: float | None = None) -> Cell:
    """A signed difference in percentage points, colored by its sign."""
    text = signed(points, sd)
    return Cell(text, points, kind="up" if text.startswith("+") else "down" if text.startswith(MINUS) else "")


def _time_columns(keys: Sequence[Key], timings: Timings, paper: Paper) -> dict[Column, CellOf]:
    """Milliseconds and frames a second on each of our devices, then the paper's; none without a device."""
    columns: dict[Column, CellOf] = {}
    for device in sorted({device for times in timings.values() for device in times}):
        times = {key: timings[key[:2]][device] for key in keys if device in timings.get(key[:2], {})}
        milliseconds, rates = {key: time.ms for key, time in times.items()}, {key: time.fps for key, time in times.items()}
        columns[Column("ms", f"ours: {device}", True)] = _numbers(milliseconds, lambda ms: fixed(ms, 1))
        columns[Column("FPS", f"ours: {device}", True)] = _numbers(rates, lambda fps: fixed(fps, 0 if fps >= 10 else 1))
    if columns:
        columns[Column("ms", PAPER_DEVICE, True)] = _published(paper, lambda row: row.ms, 0)
        columns[Column("FPS", PAPER_DEVICE, True)] = _published(paper, lambda row: row.fps, 0)
    return columns


def table2(rows: Sequence[Row], anatomies: Sequence[str], paper: Paper, *, at_point: bool = False) -> Table:
    """Dice of every row by anatomy, the mean over the seeds; below it the paper's and the difference, unless `paper` is empty.

    at_point: at the operating points, of the rows that have them, as Table 3.
    """
    ours = {row.key: row for row in rows if row.means_at_point or not at_point}
    bounds = {key: row.intervals("dice_at_operating_point" if at_point else "dice")[1] for key, row in ours.items()}

    def beside(key: Key, anatomy: str) -> Cell:
        dice = ours[key].dice_at_point(anatomy) if at_point else ours[key].dice(anatomy)
        published = paper[key].by_anatomy[anatomy] if key in paper else None
        below = fixed(published, 0) if paper else None
        if published is not None and dice is not None:
            below = f"{below} ({signed(100 * dice - published)})"
        return Cell(percent(dice), dice, below, interval=span(bounds[key].get(anatomy), 0))

    columns: dict[Column, CellOf] = {
        Column("Network"): lambda key: _text(full_name(key[0])),
        Column("Layout"): lambda key: _text(f"{MARKS[key[1]]} + KD", "kd") if key[2] else _text(MARKS[key[1]]),
        **{Column(spoken(anatomy), number=True): partial(beside, anatomy=anatomy) for anatomy in anatomies},
    }
    note = f"Dice in percent, {AT_POINT if at_point else AT_HALF}, the mean over the seeds"
    note += ", with its 95 % interval over patients" * any(row.pictures for row in rows)
    note += "; below it the paper's and, in brackets, the difference." if paper else "."
    name, title = ("table3", f"Table 3. Dice by anatomy {AT_POINT}") if at_point else ("table2", "Table 2. Dice by anatomy")
    return Table(name, title, tuple(columns), _parts(ours, columns.values()), [note])


def gains(rows: Sequence[Row], *, at_point: bool = False) -> list[Gain]:
    """One gain for each architecture that was trained with and without distillation, over the seeds both arms have.

    at_point: judge at the operating points; an architecture that lacks them in one arm is left out.
    """
    arms: dict[tuple[str, bool], dict[int, float]] = {}
    for row in rows:
        if row.layout == "shared" and (row.means_at_point or not at_point):
            dice = {result.seed: result.mean_dice_at_point if at_point else result.mean_dice for result in row.results}
            arms[row.arch, row.kd] = {seed: value for seed, value in dice.items() if value is not None}
    return [
        Gain(arch, {seed: (old, distilled[seed]) for seed, old in arms[arch, False].items() if seed in distilled}, at_point)
        for (arch, kd), distilled in arms.items()
        if kd and (arch, False) in arms
    ]


def gain_table(rows: Sequence[Gain], paper: Paper) -> Table:
    """Baseline, distilled, their difference over the common seeds, each seed's, and the paper's if `paper` has it."""
    group = "Mean Dice, %"
    columns = [Column("Architecture"), Column("Encoder"), Column("judged")]
    columns += [Column(title, group, True) for title in ("without KD", "with KD", "difference")]
    columns += [Column("each seed's difference")] + [Column("paper's difference", number=True)] * bool(paper)
    notes = [
        "Means over the seeds both arms have; differences in percentage points"
        + (", ± their sample standard deviation." if any(len(gain.dice) > 1 for gain in rows) else "."),
        THRESHOLD_NOTE,
    ]
    return Table("gain", "What distillation gains", tuple(columns), [[_gain_row(gain, paper) for gain in rows]], notes)


def _gain_row(gain: Gain, paper: Paper) -> list[Cell]:
    points = {seed: 100 * difference for seed, difference in gain.differences.items()}
    each = ", ".join(f"seed {seed}: {signed(point)}" for seed, point in points.items())
    gained = mean(points.values())
    cells = [_text(name) for name in (*display_name(gain.arch), AT_POINT if gain.at_point else AT_HALF)]
    for arm in (0, 1):
        dice = mean(pair[arm] for pair in gain.dice.values())
        cells.append(Cell(percent(dice), dice))
    cells += [_difference(gained, spread(points.values())), Cell(each or "no seed in common", gained)]
    if paper:
        baseline, distilled = (paper.get((gain.arch, "shared", kd)) for kd in (False, True))
        published = distilled.dice - baseline.dice if baseline and distilled and not gain.at_point else None
        cells.append(Cell(signed(published), published, kind="paper"))
    return cells
