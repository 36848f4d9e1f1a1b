"""Pixel metrics in plain loops, threshold by threshold and region by region: the oracle of the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Maps = list[npt.NDArray[np.float32]]
Masks = list[npt.NDArray[np.bool_]]


def pair_count(labels: npt.NDArray[np.bool_], scores: npt.NDArray[Any]) -> float:
    won = sum(
        (defect > good) + 0.5 * (defect == good) for defect in scores[labels] for good in scores[~labels]
    )
    return float(won) / (int(labels.sum()) * int((~labels).sum()))


def plain_f1(labels: npt.NDArray[np.bool_], alarms: npt.NDArray[np.bool_]) -> float:
    return 2 * int((labels & alarms).sum()) / (int(labels.sum()) + int(alarms.sum()))


def regions_of(mask: npt.NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """8-connected regions by flooding."""
    left = {(int(i), int(j)) for i, j in np.argwhere(mask)}
    regions = []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            i, j = edge.pop()
            region.add((i, j))
            near = {(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)} & left
            left -= near
            edge.extend(near)
        regions.append(region)
    return regions


def plain_aupro(maps: Maps, masks: Masks, max_fpr: float) -> float:
    """Every distinct score is a threshold; overlaps are counted region by region, the area strip by strip."""
    normal = [float(s) for m, k in zip(maps, masks, strict=True) for s in m[~k]]
    regions = [
        [float(m[pixel]) for pixel in region]
        for m, k in zip(maps, masks, strict=True)
        for region in regions_of(k)
    ]
    fprs, pros = [0.0], [0.0]
    for threshold in sorted({float(s) for m in maps for s in m.ravel()}, reverse=True):
        fprs.append(sum(s >= threshold for s in normal) / len(normal))
        pros.append(sum(sum(s >= threshold for s in r) / len(r) for r in regions) / len(regions))
    return area_up_to(fprs, pros, max_fpr)


def area_up_to(fprs: list[float], pros: list[float], max_fpr: float) -> float:
    """Area under straight lines between points of rising FPR, from 0 to the limit, divided by it."""
    area = 0.0
    for last_fpr, fpr, last_pro, pro in zip(fprs, fprs[1:], pros, pros[1:], strict=False):
        if fpr > max_fpr:
            pro = last_pro + (pro - last_pro) * (max_fpr - last_fpr) / (fpr - last_fpr)
            return (area + (max_fpr - last_fpr) * (pro + last_pro) / 2) / max_fpr
        area += (fpr - last_fpr) * (pro + last_pro) / 2
    return area / max_fpr
