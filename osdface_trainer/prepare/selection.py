"""What only all faces together tell: near duplicates, who is who, the hold-out; and the manifest."""

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from osdface_core.files import replacing

from ..data.faces import FaceFile
from ..data.sources import hold_out
from .photos import FaceRecord, PhotoRecord, decode_embedding
from .similarity import like_hashes, linked_groups

COLUMNS: tuple[str, ...] = (
    "file", "sha256", "source", "source_sha256", "identity", "split",
    "size", "sharpness", "coverage", "score", "box", "landmarks", "look",
)  # fmt: skip

ChosenFaces = list[tuple[PhotoRecord, FaceRecord]]


def distinct(records: list[PhotoRecord], tolerance: int) -> tuple[ChosenFaces, Counter[str]]:
    """List all accepted faces without near duplicates, in order of names, and why others are out."""
    rejected = Counter(reason for record in records for reason in record.rejected)
    faces = sorted(((r, face) for r in records for face in r.faces), key=lambda pair: pair[1].file)
    if tolerance < 0 or len(faces) < 2:
        return faces, rejected
    groups = like_hashes([face.look for _, face in faces], tolerance)
    best: dict[int, tuple[PhotoRecord, FaceRecord]] = {}
    for group, pair in zip(groups, faces, strict=True):
        if group not in best or _quality(pair[1]) > _quality(best[group][1]):
            best[group] = pair
    chosen = sorted(best.values(), key=lambda pair: pair[1].file)
    if len(chosen) < len(faces):
        rejected["duplicate"] = len(faces) - len(chosen)
    return chosen, rejected


def _quality(face: FaceRecord) -> tuple[int, float]:
    return face.size, face.sharpness


def of_person(chosen: ChosenFaces, portraits: torch.Tensor, same_person: float) -> ChosenFaces:
    """Keep the faces that likeness links to a portrait, (N, D) of length 1: directly or by other faces.

    One portrait is rarely as like a profile or a face ten years younger as `same_person` asks.
    """
    if not chosen:
        return chosen
    links = linked_groups(torch.cat([portraits, _embeddings(chosen)]), same_person)
    wanted = set(links[: len(portraits)])
    return [pair for pair, group in zip(chosen, links[len(portraits) :], strict=True) if group in wanted]


def people_of(chosen: ChosenFaces, same_person: float) -> list[str]:
    """Name each person: a face file where embeddings tell them apart, else the sub-folder or the photo."""
    if chosen and all(face.embedding for _, face in chosen):
        return [Path(chosen[first][1].file).stem for first in linked_groups(_embeddings(chosen), same_person)]
    folders = [Path(record.source).parent.as_posix() for record, _ in chosen]
    return [
        record.source if folder == "." else folder
        for folder, (record, _) in zip(folders, chosen, strict=True)
    ]


def _embeddings(chosen: ChosenFaces) -> torch.Tensor:
    """Stack the faces' embeddings: (N, D) of length 1."""
    return torch.nn.functional.normalize(
        torch.stack([decode_embedding(face.embedding) for _, face in chosen]), dim=1
    )


def split_of(chosen: ChosenFaces, people: list[str], share: float, seed: int) -> tuple[list[str], str]:
    """Assign "train" or "val" to each face, and by what faces were kept together."""
    photos = [record.source for record, _ in chosen]
    for name, keys in (("identity", people), ("photo", photos)):
        if share > 0 and len(set(keys)) > 1:
            items = [
                FaceFile(face.file, Path(), identity=key) for key, (_, face) in zip(keys, chosen, strict=True)
            ]
            held = {item.name for item in hold_out(items, share, seed)[1]}
            return ["val" if face.file in held else "train" for _, face in chosen], name
    return ["train"] * len(chosen), "identity"


def write_manifest(dst: Path, chosen: ChosenFaces, people: list[str], split: list[str]) -> Path:
    path = dst / "manifest.csv"
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as out,
    ):
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        for (record, face), identity, part in zip(chosen, people, split, strict=True):
            values: dict[str, Any] = {name: getattr(face, name) for name in COLUMNS if hasattr(face, name)}
            values.update(source=record.source, source_sha256=record.sha256, identity=identity, split=part)
            values["box"] = _numbers(face.box)
            values["landmarks"] = _numbers(value for point in face.landmarks for value in point)
            writer.writerow(values)
    return path


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)
