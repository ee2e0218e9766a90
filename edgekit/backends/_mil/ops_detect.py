"""Detection heads and classifiers: suppression of overlapping boxes, and class labels."""

from __future__ import annotations

from typing import Any

from edgekit.backends._mil.operators import Args, operator


@operator("non_maximum_suppression")
def non_maximum_suppression(torch: Any, args: Args) -> Any:
    """Boxes by falling score without those that overlap a better one; unused places are zero, their index -1.

    Boxes are (centre x, centre y, width, height): (n, boxes, 4) up to iOS 16, (n, 4, boxes) since.
    """
    boxes, scores = args.tensor("boxes"), args.tensor("scores")
    modern = not args.has("score_threshold")
    if modern:
        boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)
    count = args.integer("max_boxes")
    kept = [_kept(torch, args, boxes[n], scores[n])[:count] for n in range(boxes.shape[0])]
    found_boxes, found_scores = (_picked(torch, values, kept, count) for values in (boxes, scores))
    places = torch.stack([torch.tensor(row + [-1] * (count - len(row)), dtype=torch.int64) for row in kept])
    if modern:
        return found_boxes.transpose(1, 2), found_scores.transpose(1, 2), places
    return found_boxes, found_scores, places, torch.tensor([len(row) for row in kept], dtype=torch.int64)


def _picked(torch: Any, values: Any, kept: list[list[int]], count: int) -> Any:
    rows = []
    for example, row in zip(values, kept, strict=True):
        chosen = example[torch.tensor(row, dtype=torch.int64)]
        rows.append(torch.nn.functional.pad(chosen, (0, 0, 0, count - len(row))))
    return torch.stack(rows)


def _kept(torch: Any, args: Args, boxes: Any, scores: Any) -> list[int]:
    best, classes = scores.max(dim=-1)
    order = torch.argsort(best, descending=True, stable=True).tolist()
    limit, by_class = args.number("iou_threshold"), args.flag("per_class_suppression")
    floor = args.number("score_threshold", float("-inf"))
    overlap = _overlaps(torch, boxes)
    kept: list[int] = []
    for place in order:
        if float(best[place]) < floor:
            continue
        rivals = [other for other in kept if not by_class or classes[other] == classes[place]]
        if all(float(overlap[place, other]) <= limit for other in rivals):
            kept.append(place)
    return kept


def _overlaps(torch: Any, boxes: Any) -> Any:
    """Intersection over union of each box with each."""
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    sides = torch.minimum(high[:, None], high[None]) - torch.maximum(low[:, None], low[None])
    shared = sides.clamp(min=0).prod(dim=-1)
    areas = boxes[:, 2:].prod(dim=-1)
    return shared / (areas[:, None] + areas[None] - shared)


@operator("classify")
def classify(torch: Any, args: Args) -> Any:
    """The label of the most probable class, and the probability of each label."""
    values = args.tensor("probabilities").reshape(-1)
    classes = args.value("classes")
    if hasattr(classes, "tolist"):
        classes = classes.tolist()
    if len(classes) != values.numel():
        raise args.refuse(f"{len(classes)} labels for {values.numel()} probabilities")
    return classes[int(torch.argmax(values))], dict(zip(classes, values.tolist(), strict=True))
