"""Placing labels beside points so that none covers another, a marker or a line. Pure geometry, in any one unit."""

import math
from collections.abc import Sequence

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top

ANGLES = (0, 180, 90, 270, 45, 135, 315, 225, 22, 158, 338, 202, 68, 112, 248, 292)
ROUNDS = 8
COVERED, OUTSIDE, FAINT, CROSSED, CLOSER = 10.0, 10.0, 1.5, 4.0, 2.0
STEPS = 12


def overlap(one: Box, other: Box) -> float:
    """The area two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def box_at(point: Point, size: tuple[float, float], angle: float, distance: float) -> Box:
    """A label's box of size (width, height) beside a point, `distance` away at `angle` degrees."""
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x = point[0] + across * (distance + size[0] / 2) - size[0] / 2
    y = point[1] + up * (distance + size[1] / 2) - size[1] / 2
    return x, y, x + size[0], y + size[1]


def nearest(box: Box, point: Point) -> Point:
    """The point of a box that is nearest to `point`."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def place(
    points: Sequence[Point],
    sizes: Sequence[tuple[float, float]],
    *,
    obstacles: Sequence[Box],
    faint: Sequence[Box],
    frame: Box,
    distances: Sequence[float],
) -> list[Box]:
    """A box for each label.

    points, sizes: where each label belongs and its (width, height). obstacles: what no label may cover and no line from
    a label to its point may cross; faint: what labels cover if need be. frame: where labels must lie. distances: from a
    point, nearest first. Each label in turn takes the cheapest place given all others, until none moves.
    """
    offers, prices = [], []
    for point, size in zip(points, sizes, strict=True):
        others = [other for other in points if other != point]
        boxes, costs = [], []
        for step, distance in enumerate(distances):
            for rank, angle in enumerate(ANGLES):
                box = box_at(point, size, angle, distance)
                boxes.append(box)
                costs.append(0.01 * rank + 0.3 * step + _cost(box, obstacles, COVERED) + _cost(box, faint, FAINT))
                costs[-1] += _outside(box, frame) + _ambiguity(box, point, others) + _crossings(box, point, obstacles)
        offers.append(boxes)
        prices.append(costs)
    chosen = [min(range(len(costs)), key=costs.__getitem__) for costs in prices]
    for _ in range(ROUNDS):
        before = list(chosen)
        for index, boxes in enumerate(offers):
            taken = [offers[other][chosen[other]] for other in range(len(offers)) if other != index]
            costs = [price + _cost(box, taken, COVERED) for price, box in zip(prices[index], boxes, strict=True)]
            chosen[index] = min(range(len(costs)), key=costs.__getitem__)
        if chosen == before:
            break
    return [boxes[pick] for boxes, pick in zip(offers, chosen, strict=True)]


def _cost(box: Box, obstacles: Sequence[Box], each: float) -> float:
    """`each` for anything covered, up to twice as much the more of the box it takes."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return sum(each * (1 + shared / area) for obstacle in obstacles if (shared := overlap(box, obstacle)))


def _outside(box: Box, frame: Box) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    part = 1 - overlap(box, frame) / area
    return OUTSIDE * (1 + part) if part > 1e-6 else 0.0


def _ambiguity(box: Box, point: Point, others: Sequence[Point]) -> float:
    """A price where the label lies nearer to another label's point than to its own."""
    own = math.dist(nearest(box, point), point)
    return CLOSER * sum(math.dist(nearest(box, other), other) < own for other in others)


def _crossings(box: Box, point: Point, obstacles: Sequence[Box]) -> float:
    """A price for each obstacle, but those at the point itself, that the line from the point to the label crosses."""
    end = nearest(box, point)
    line = [tuple(a + (b - a) * step / STEPS for a, b in zip(point, end, strict=True)) for step in range(STEPS + 1)]
    foreign = [obstacle for obstacle in obstacles if not _inside(point, obstacle)]
    return CROSSED * sum(any(_inside(at, obstacle) for at in line) for obstacle in foreign)


def _inside(point: Point, box: Box) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]
