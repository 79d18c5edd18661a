"""How each anatomy is drawn: one function each, of the anatomy's name."""

from math import cos, pi, sin

import numpy as np

from mtkd_cache.phantom.canvas import BACKGROUND, linear, mix
from mtkd_cache.phantom.shapes import Array, bean, capillaries, curve, lobules, tube
from mtkd_cache.phantom.tissue import Scene, bed


def abdominal_wall(s: Scene) -> None:
    """The large vault over the scene: pale red, streaked, its lower border a wide arch."""
    border = s.jitter(-0.02 if s.focus == "abdominal_wall" else -0.2, 0.09)
    x, y = s.view.x, s.view.y
    tilt, arch = s.jitter(0, 0.35), s.jitter(0.35, 0.45)
    inside = np.float32(border) + np.float32(tilt) * x - np.float32(arch) * x * x - y + 0.02 * s.noise(4)
    streaks = s.noise(26, 5)
    grain = 0.5 * streaks + 0.6 * s.noise(3.5)
    color = s.albedo("abdominal_wall", (158, 84, 74), (226, 162, 144), grain, vessels=0.7, cells=6)
    relief = 0.05 * s.noise(1.8) + 0.0025 * streaks + 0.15 * np.clip(0.25 - inside, 0, 0.25)
    s.paint("abdominal_wall", inside, relief, color, gloss=0.35, light=s.jitter(0.66, 0.12))


def liver(s: Scene) -> None:
    """A large dark lobe with a sharp lower edge that comes in from the upper left."""
    reach = 0.1 if s.focus == "liver" else 0.0
    center, axes = ((s.jitter(-0.5, 0.14), s.jitter(-0.44, 0.1)), (s.jitter(0.82, 0.12) + reach, s.jitter(0.44, 0.08) + reach))
    bend, taper, wobble = s.jitter(0.15, 0.2), s.jitter(0.35, 0.25), 0.022 * s.noise(2.5)
    inside, dome = bean(s.view, center, axes, s.jitter(0.05, 0.25), bend=bend, taper=taper, wobble=wobble)
    grain, slow = s.noise(38), s.noise(3)
    color = s.albedo("liver", (98, 32, 26), (150, 62, 48), 0.5 * slow + 0.35 * grain)
    relief = 0.05 * inside / (np.abs(inside) + 0.03) + 0.12 * dome + 0.01 * slow + 0.0008 * grain
    s.paint("liver", inside, relief, color, gloss=1.0, shadow=0.06)


def spleen(s: Scene) -> None:
    """A mid-sized dark bean with a notch, high on the right."""
    center, axes = (s.jitter(0.44, 0.07), s.jitter(-0.12, 0.1)), (s.jitter(0.26, 0.04), s.jitter(0.135, 0.025))
    inside, dome = bean(s.view, center, axes, s.jitter(1.2, 0.4), bend=s.jitter(0.35, 0.2))
    grain, slow = s.noise(30), s.noise(4)
    color = s.albedo("spleen", (92, 30, 36), (146, 58, 64), 0.5 * slow + 0.4 * grain)
    notch = np.clip(1 - np.abs(s.noise(4)) / 0.1, 0, 1)
    relief = 0.1 * dome + 0.008 * slow + 0.0008 * grain
    s.paint("spleen", inside - 0.012 * notch, relief, color, gloss=0.9, shadow=0.05)


def stomach(s: Scene) -> None:
    """A large smooth pale bag in the middle, with vessels along its greater curvature."""
    high = {"pancreas": -0.27, "stomach": -0.04}.get(s.focus, -0.1)
    center, axes = (s.jitter(0.08, 0.1), s.jitter(high, 0.06)), (s.jitter(0.44, 0.06), s.jitter(0.2, 0.03))
    bend, taper, wobble = s.jitter(-0.3, 0.2), s.jitter(-0.3, 0.25), 0.022 * s.noise(3)
    inside, dome = bean(s.view, center, axes, s.jitter(0.3, 0.3), bend=bend, taper=taper, wobble=wobble)
    grain = 0.7 * s.noise(2.5) + 0.3 * s.noise(12)
    color = s.albedo("stomach", (196, 116, 104), (232, 174, 158), grain, vessels=0.9, cells=9)
    rim = np.clip(1 - inside / 0.06, 0, 1) * capillaries(s.rng, s.view.shape, 12, 0.25)
    color = mix(color, linear((150, 40, 44)), 0.6 * rim)
    relief = 0.13 * dome + 0.016 * s.noise(3.5) + 0.0008 * s.noise(26)
    s.paint("stomach", inside, relief, color, gloss=0.7, shadow=0.05)


def pancreas(s: Scene) -> None:
    """A long lobulated gland below the stomach, nearly as yellow as fat."""
    center, axes = (s.jitter(0.06, 0.1), s.jitter(0.08, 0.07)), (s.jitter(0.37, 0.07), s.jitter(0.082, 0.018))
    lumps = lobules(s.rng, s.view.shape, 22)
    bend, taper, wobble = s.jitter(0.25, 0.3), s.jitter(0.2, 0.3), 0.02 * (lumps - 0.8)
    inside, dome = bean(s.view, center, axes, s.jitter(-0.12, 0.25), bend=bend, taper=taper, wobble=wobble)
    grain = 1.6 * lumps - 1.5 + 0.3 * s.noise(5)
    color = s.albedo("pancreas", (176, 104, 74), (232, 182, 134), grain, vessels=0.4, cells=10)
    s.paint("pancreas", inside, 0.06 * dome + 0.011 * lumps, color, gloss=0.55, light=0.88, shadow=0.02)


def _bowel(s: Scene, path: Array, radius: float, pouch: float) -> None:
    """Colon along `path`: pouches of length `pouch` between creases, a pale longitudinal band, fat tags beside it."""
    shape = s.tube(path, radius, radius * s.jitter(0.95, 0.15))
    slow, quick = s.noise(2.8), s.noise(5)
    phase = shape.along / np.float32(pouch) + 0.4 * slow + np.float32(s.jitter(0, 0.35)) * shape.across
    fold = 2 * (phase - np.floor(phase)) - 1
    fold = fold * fold
    crease = fold * fold * np.clip(0.75 + 0.35 * quick, 0.2, 1.1)
    band = np.clip(1.6 - 6 * np.abs(shape.across - np.float32(s.jitter(0, 0.5)) - 0.08 * quick), 0, 1)
    size = (1 - 0.2 * crease * (1 - 0.8 * band)) * (1 + 0.06 * slow)
    across = shape.across / size
    inside = shape.radius * (size - np.abs(shape.across))
    relief = shape.radius * size * np.sqrt(np.clip(1 - across * across, 0, 1))
    grain = 0.6 * s.noise(5) - 0.45 * crease + 0.2
    color = s.albedo("colon", (182, 108, 92), (222, 158, 136), grain, vessels=0.6, cells=9)
    color = mix(color, linear((232, 186, 162)), 0.5 * band)
    s.paint("colon", inside, 0.85 * relief + 0.005 * s.noise(10), color, gloss=0.6, shadow=0.05)
    for index in s.rng.integers(2, len(path) - 2, int(4 * s.style.obesity)):
        across_path = path[index + 1] - path[index - 1]
        normal = np.array([-across_path[1], across_path[0]]) / (np.hypot(*across_path) + 1e-9)
        at = path[index] + normal * radius * s.rng.choice([-1.0, 1.0]) * 0.95
        tag = tube(s.view, np.stack([at, at + normal * 0.03 + [0, 0.05]]), np.array([0.02, 0.032]) * s.jitter(1.1, 0.3))
        pale = linear(s.style.fat) * np.float32(0.95)
        s.canvas.paint(BACKGROUND, tag.inside + 0.006 * s.noise(16), tag.relief, pale, gloss=0.5)


def colon(s: Scene, where: str) -> None:
    """The transverse colon across the bottom, the descending colon on the left, or the rectum from below."""
    paths = {
        "transverse": [(-0.85, 0.3), (-0.35, 0.4), (0.1, 0.33), (0.45, 0.38), (0.9, 0.2)],
        "descending": [(-0.55, -0.65), (-0.42, -0.2), (-0.46, 0.15), (-0.25, 0.45), (0.05, 0.7)],
        "rectum": [(0.1, 0.75), (0.0, 0.5), (0.06, 0.34), (0.02, 0.22)],
    }
    radius = s.jitter(0.14 if s.focus == "colon" else 0.125, 0.03)
    _bowel(s, s.path(paths[where], 0.06, 22), radius, s.jitter(1.15, 0.3) * radius)


def small_intestine(s: Scene) -> None:
    """Coils of a smooth tube that fill the lower right."""
    radius = s.jitter(0.072, 0.013)
    bumps, fine = s.noise(8), s.noise(30)
    grain = 0.3 * fine + 0.6 * bumps
    color = s.albedo("small_intestine", (196, 100, 88), (234, 156, 138), grain, vessels=1.0, cells=12)
    x, y, turn = s.jitter(0.3, 0.08), s.jitter(0.42, 0.06), s.jitter(-0.2, 0.5)
    for rows in (int(s.rng.integers(3, 5)), int(s.rng.integers(1, 3))):
        points = []
        for row in range(rows):
            wide, up = s.jitter(0.34, 0.14), 1.75 * radius * row
            for step in np.linspace(-wide, wide, 4) * (1 if row % 2 else -1):
                across, high = step + s.jitter(0, 0.05), up + s.jitter(0, 0.7 * radius)
                points.append((x + across * cos(turn) + high * sin(turn), y + across * sin(turn) - high * cos(turn)))
        path = s.path(points, 0.02, 14 * rows)
        bulges = 1 + 0.16 * curve(s.rng.uniform(-1, 1, (8, 1)), len(path))[:, 0]
        shape = tube(s.view, path, radius / s.view.zoom * bulges)
        relief = 1.05 * shape.relief + 0.004 * bumps + 0.001 * fine
        s.paint("small_intestine", shape.inside, relief, color, gloss=0.8, shadow=0.035)
        y, turn = y + s.jitter(0, 0.1), turn + s.jitter(0.4, 0.5)


def intestinal_veins(s: Scene) -> None:
    """A tree of dark bluish vessels that fans out through the mesentery, sunk into its fat."""
    trunk = (s.jitter(-0.12, 0.12), s.jitter(0.3, 0.1))
    color = s.albedo("intestinal_veins", (84, 40, 62), (132, 66, 88), 0.6 * s.noise(6))
    cover = np.clip(0.45 + 0.5 * s.noise(5), 0.12, 0.75)
    color = mix(linear(s.style.fat) * np.float32(0.7), color, cover + 0.35)
    spread, branches = s.jitter(0.55, 0.1), int(s.rng.integers(2, 5))
    main = s.jitter(0.02, 0.004)
    for branch in range(branches):
        angle = -pi / 2 + spread * (2 * (branch + s.jitter(0.5, 0.25)) / branches - 1) * 1.6
        length = s.jitter(0.52, 0.13)
        points = [(trunk[0] + length * t * cos(angle), trunk[1] + length * t * sin(angle)) for t in (0, 0.35, 0.7, 1)]
        shape = s.tube(s.path([(trunk[0], trunk[1] + 0.2), *points], 0.03, 14), main, 0.5 * main)
        relief = 0.7 * shape.relief
        s.paint("intestinal_veins", shape.inside, relief, color, gloss=0.5, light=0.92, shadow=0.012, soft=1.6)


def inferior_mesenteric_artery(s: Scene) -> None:
    """A short straight trunk with a fork, freed from fat in the midline."""
    center, lean = (s.jitter(0.02, 0.13), s.jitter(-0.02, 0.1)), s.jitter(0.35, 0.35)
    bed(s, center, (s.jitter(0.3, 0.05), s.jitter(0.16, 0.03)), pi / 2 + lean)
    middle, down, radius = np.array(center), np.array([-sin(lean), cos(lean)]), s.jitter(0.021, 0.004)
    fork = middle + 0.06 * down
    color = s.albedo("inferior_mesenteric_artery", (184, 84, 66), (232, 146, 116), 0.6 * s.noise(9))
    arms = [([middle - 0.34 * down, middle - 0.12 * down, fork], radius, 0.95 * radius)]
    for turn in (0.55, -0.6):
        angle = lean + turn + s.jitter(0, 0.2)
        arm = s.jitter(0.24, 0.05) * np.array([-sin(angle), cos(angle)])
        arms.append(([fork, fork + 0.5 * arm, fork + arm], 0.8 * radius, 0.6 * radius))
    for points, start, end in arms:
        shape = s.tube(s.path(points, 0.03, 10), start, end)
        s.paint("inferior_mesenteric_artery", shape.inside, shape.relief, color, gloss=0.8, shadow=0.022)


def ureter(s: Scene, side: float, spread: float) -> None:
    """A long wavy unbranched tube on the red floor at scene x = `side` +- `spread`, with fine vessels along it."""
    side = s.jitter(side, spread)
    top = side + s.jitter(0.1, 0.08)
    bed(s, (side, s.jitter(0, 0.08)), (0.5, s.jitter(0.13, 0.03)), pi / 2 + s.jitter(0, 0.2))
    points = [(top, -0.6), (side, -0.25), (side + 0.05, -0.02), (side - 0.03, 0.2), (side + s.jitter(0, 0.08), 0.62)]
    shape = s.tube(s.path(points, 0.03, 26), s.jitter(0.021, 0.004), s.jitter(0.019, 0.004))
    color = s.albedo("ureter", (196, 122, 98), (238, 188, 160), 0.5 * s.noise(9))
    stripe = np.clip(1 - 4 * np.abs(shape.across - 0.25 * s.noise(8)), 0, 1)
    color = mix(color, linear((186, 66, 58)), 0.55 * s.style.vessels * stripe)
    inside = shape.inside + 0.003 * s.noise(12)
    s.paint("ureter", inside, 0.9 * shape.relief, color, gloss=0.7, shadow=0.02)


def vesicular_glands(s: Scene) -> None:
    """A pair of small convoluted glands that meet in the middle of the pelvis."""
    x, y = s.jitter(0.0, 0.08), s.jitter(-0.06, 0.07)
    lumps = lobules(s.rng, s.view.shape, 15)
    grain = 1.5 * lumps - 1.3 + 0.3 * s.noise(5)
    color = s.albedo("vesicular_glands", (178, 108, 88), (232, 180, 148), grain, vessels=0.6, cells=12)
    for side in (-1, 1):
        center = (x + side * s.jitter(0.15, 0.025), y + s.jitter(0, 0.02))
        axes = (s.jitter(0.13, 0.025), s.jitter(0.058, 0.012))
        inside, dome = bean(s.view, center, axes, side * s.jitter(-0.45, 0.2), bend=0.2, wobble=0.018 * (lumps - 0.8))
        relief = 0.05 * dome + 0.014 * lumps
        s.paint("vesicular_glands", inside, relief, color, gloss=0.7, light=0.85, shadow=0.025)
