"""The report's page in a real browser: it sorts, it is readable in both color schemes, and it fits a narrow screen."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.study.published import published
from mtkd_cache.study.report import write
from mtkd_cache.study.report.formats import DASH
from mtkd_cache.study.report.header import describe_data

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")

SCORES = {("mininetv2", False): 0.31, ("mininetv2", True): 0.58, ("segformer-mit_b0", True): 0.612, ("fpn-x", False): 0.4}
SIZES = {"segformer-mit_b0": 7.7, "fpn-x": None}  # millions of parameters; others have 1.52

SORT = """
const text = (table, column) => [...table.querySelectorAll("tbody tr")].map(row => row.cells[column].innerText);
const head = (table, column) => table.querySelector(`th[data-column="${column}"]`);
const table = document.querySelector("#table1 table"), button = head(table, 5).querySelector("button");
const states = [text(table, 5)];
for (let press = 0; press < 3; press++) {
  button.focus();
  document.activeElement.click();
  states.push(head(table, 5).ariaSort, text(table, 5));
}
head(table, 4).querySelector("button").click();
const sizes = [text(table, 4)];
head(table, 4).querySelector("button").click();
sizes.push(text(table, 4));
head(table, 0).querySelector("button").click();
result = {
  states, sizes, names: text(table, 0), order: button.tabIndex, rows: table.querySelectorAll("tbody tr").length,
  sorted: table.querySelectorAll('[aria-sort="ascending"], [aria-sort="descending"]').length,
  buttons: document.querySelectorAll("thead button").length, columns: document.querySelectorAll("[data-column]").length,
};
"""

LOOK = """
const channel = value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = color => {
  const [r, g, b] = color.match(/[0-9.]+/g).map(value => channel(value / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, other) => {
  const [high, low] = [light(one), light(other)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
};
const ground = getComputedStyle(document.body).backgroundColor;
result = {light: light(ground), contrast: {}, pictures: []};
for (const kind of ["body", "h1", "dt", ".notes", "td.paper", ".kd", ".up", ".down", ".below", "figcaption"])
  result.contrast[kind] = contrast(getComputedStyle(document.querySelector(kind)).color, ground);
const aside = getComputedStyle(document.querySelector("aside"));
result.contrast.aside = contrast(aside.color, aside.backgroundColor);
for (const image of document.images) {
  const card = getComputedStyle(image.parentElement);
  result.pictures.push([image.naturalWidth, image.alt.length, light(card.backgroundColor)]);
}
"""

NARROW = """
const page = document.querySelector("iframe").contentDocument;
const scrolling = [...page.querySelectorAll(".scroll")];
result = {
  width: page.documentElement.clientWidth, content: page.documentElement.scrollWidth,
  inside: scrolling.every(box => box.getBoundingClientRect().right <= page.documentElement.clientWidth),
  reach: scrolling.some(box => box.scrollWidth > box.clientWidth), focus: scrolling.every(box => box.tabIndex === 0),
};
"""


def page_of(rows: dict[tuple[str, str, bool], float], root: Path) -> str:
    """The report's page of evaluated folders, a row each, with the paper's anatomies."""
    runs = []
    for (arch, layout, kd), score in rows.items():
        run = {
            "arch": arch,
            "layout": layout,
            "kd": kd,
            "seed": 0,
            "anatomies": ANATOMIES,
            "size": [640, 512],
            "params_m": SIZES.get(arch, 1.52),
        }
        run |= {"cache_fingerprint": None, "best_epoch": 0, "val_dice": 0.5, "kind": "student"}
        runs.append(root / f"{arch}-{layout}-{kd}")
        records = [runs[-1] / "run.json"] if layout == "shared" else [runs[-1] / name / "teacher.json" for name in ANATOMIES]
        for record in records:
            record.parent.mkdir(parents=True)
            record.write_text(json.dumps({**run, "anatomy": record.parent.name}))
        evaluation = {"dice": dict.fromkeys(ANATOMIES, score), "mean_dice": score, "images": 126, "split": "test"}
        (runs[-1] / "evaluation-test.json").write_text(json.dumps(evaluation))
    write.write_report(runs, root / "out")
    return (root / "out" / "report.html").read_text()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """The page of four shared rows, one of them not in the paper."""
    rows = {(arch, "shared", kd): score for (arch, kd), score in SCORES.items()}
    return page_of(rows, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """The page of all the paper's rows, with its figures and the differences, as of the Dresden set."""
    rows = {key: row.dice / 100 - 0.01 for key, row in published().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "describe_data", lambda rows, store: replace(describe_data(rows, store), is_papers=True))
        return page_of(rows, tmp_path_factory.mktemp("whole"))


def run_in_browser(page: str, script: str, folder: Path, *flags: str) -> dict:
    """What the script leaves in `result` once the page has loaded."""
    ending = f"""<script>addEventListener("load", () => {{
      let result;
      try {{ {script} }} catch (error) {{ result = {{error: `${{error}}`}}; }}
      const output = document.createElement("pre");
      output.id = "result";
      output.textContent = JSON.stringify(result);
      document.body.append(output);
    }});</script></body>"""
    (folder / "page.html").write_text(page.replace("</body>", ending))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", *flags]
    command += ["--virtual-time-budget=2000", "--dump-dom", (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    result = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert result, done.stderr[-2000:]
    result = json.loads(html.unescape(result[1]))
    assert "error" not in result, result
    return result


def test_columns_sort_up_down_and_back(report, tmp_path):
    result = run_in_browser(report, SORT, tmp_path)
    written, up = ["31.0", "40.0", "61.2", "58.0"], ["31.0", "40.0", "58.0", "61.2"]
    down = up[::-1]
    assert result["states"] == [written, "ascending", up, "descending", down, "none", written]
    assert result["names"] == ["FPN", "MiniNetV2", "MiniNetV2", "SegFormer"]
    assert result["sizes"] == [["1.52", "1.52", "7.70", DASH], ["7.70", "1.52", "1.52", DASH]]
    assert result["sorted"] == 1
    assert result["buttons"] == result["columns"] > 20
    assert result["order"] == 0
    assert result["rows"] == 4


@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)])
def test_readable_in_both_color_schemes(whole, tmp_path, scheme, dark):
    result = run_in_browser(whole, LOOK, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
    assert (result["light"] < 0.05) == dark
    assert min(result["contrast"].values()) >= 4.5, result["contrast"]  # WCAG 2, AA
    assert result["pictures"]
    for width, words, behind in result["pictures"]:
        assert width > 100
        assert words > 20
        assert behind > 0.7


def test_fits_a_narrow_screen(report, tmp_path):
    frame = f'<!doctype html><body><iframe style="width:390px;height:800px" srcdoc="{html.escape(report)}"></iframe></body>'
    result = run_in_browser(frame, NARROW, tmp_path)
    assert result["content"] <= result["width"] <= 390
    assert result["inside"]
    assert result["reach"]
    assert result["focus"]
