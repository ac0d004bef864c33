"""`osdface evaluate`: judge restored faces against references, or a model against faces degraded on the spot.

Two ways in. `evaluate` compares folders of images. `evaluate_degraded` needs only clean faces: it degrades
them reproducibly, restores them and compares both with the clean faces, so a fine-tuner needs no prepared
test set.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from osdface_core.errors import ImageError
from osdface_core.images import from_unit, write_photo

from ..data.degrade import Enlarge, degrade
from ..data.degrade_ops import real_jpeg
from ..data.degrade_profiles import named_profile
from .collect import Candidates, Collector, EvaluationOptions
from .pairing import batches, list_images, pair, read_image, read_images, resize_bicubic
from .scores import Report

Restore = Callable[[Tensor], Tensor]
FACE = 512
"""[px] side of the faces that models restore."""
CLEAN = "identity"
"""The profile in which the model gets the clean face; it should leave it as it is."""
YARDSTICK_QUALITY = 75
"""JPEG quality of that profile's baseline: libjpeg's default, a difference that viewers accept."""


def evaluate(
    restored: Path,
    reference: Path | None,
    *,
    lq: Path | None = None,
    options: EvaluationOptions | None = None,
) -> Report:
    """Compare folders of images, matched by file stem.

    Args:
        reference: clean images of the same size; None leaves only metrics that need none.
        lq: the low-quality inputs; smaller ones are enlarged by bicubic resizing and measured beside.
    Returns:
        values per image and what is missing, unmatched or unreadable.
    Raises:
        ConfigError: a folder is unusable, nothing matches, or an option is wrong.
    """
    options = options or EvaluationOptions()
    items, unmatched = pair(restored, reference, lq)
    collector = Collector(options)
    report = collector.report
    report.unmatched = unmatched
    folders = {"restored": restored, "reference": reference, "lq": lq}
    report.settings |= {side: str(path) for side, path in folders.items() if path}
    stems = list(items)[: options.limit]
    read = batches(
        stems, lambda stem: read_images(*items[stem]), options.batch_size, report.failed, options.progress
    )
    for names, (image, target, small) in read:
        sides = {("", "restored"): image, ("", "input"): small}
        collector.add(names, target, {key: images for key, images in sides.items() if images is not None})
    return collector.finish()


def evaluate_degraded(
    faces: Path,
    profiles: Sequence[str],
    restore: Restore,
    *,
    enlarge: Enlarge = "bicubic",
    save: Path | None = None,
    options: EvaluationOptions | None = None,
) -> Report:
    """Degrade clean faces, restore them, and compare restored and input with the clean ones.

    The baseline ("input") is bicubic enlargement of the same small, noisy, compressed picture. In the profile
    `identity` the model gets the clean face itself, and the baseline is that face as a JPEG of
    quality 75.

    Args:
        faces: folder of clean aligned faces; others than 512×512 are resized.
        profiles: names of degradation profiles. Seeds follow from file name and `options.seed` alone.
        restore: (B,3,512,512) float in [0,1] -> the same.
        enlarge: how the picture that the model gets was brought to 512 px.
        save: folder that receives `<profile>/lq/*.png` and `<profile>/restored/*.png`.
    Raises:
        ConfigError: an unknown profile, an unusable folder or a wrong option.
    """
    options = options or EvaluationOptions()
    for profile in profiles:
        named_profile(profile)
    files = list_images(faces)
    collector = Collector(options)
    report = collector.report
    report.settings |= {"faces": str(faces), "profiles": list(profiles), "enlarge": enlarge}
    if CLEAN in profiles:
        report.notes.append(
            f"{CLEAN}: the model gets the clean face; 'input' is that face as JPEG {YARDSTICK_QUALITY}"
        )

    def read(name: str) -> tuple[Tensor]:
        face, resized = read_face(files[name])
        if resized:
            report.settings["resized_faces"] = report.settings.get("resized_faces", 0) + 1
        return (face,)

    stems = list(files)[: options.limit]
    for names, (clean,) in batches(stems, read, options.batch_size, report.failed, options.progress):
        assert clean is not None  # `read` gives one always
        candidates: Candidates = {}
        for profile in profiles:
            baseline = degraded(clean, names, profile, options.seed)
            same = enlarge == "bicubic"
            lq = baseline if same else degraded(clean, names, profile, options.seed, enlarge)
            candidates[profile, "restored"] = eight_bit(restore(lq).float().cpu())
            if profile == CLEAN:
                baseline = torch.stack([real_jpeg(face, YARDSTICK_QUALITY) for face in clean])
            candidates[profile, "input"] = eight_bit(baseline)
        collector.add(names, clean, candidates)
        if save:
            _save(save, names, candidates)
    return collector.finish()


def face_seed(name: str, seed: int) -> int:
    """Derive a 63-bit seed from a file's stem and the global seed; the same on every machine."""
    text = f"{seed}/{name}".encode("utf-8", "backslashreplace")  # a file name may be no UTF-8
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def degraded(
    clean: Tensor, names: Sequence[str], profile: str, seed: int, enlarge: Enlarge = "bicubic"
) -> Tensor:
    """Degrade (B,3,H,W) in [0,1]; each face as its file's stem in `names` and the seed say."""
    return degrade(clean, profile, [face_seed(name, seed) for name in names], enlarge=enlarge)


def eight_bit(images: Tensor) -> Tensor:
    """Round to what a file would hold, 1/255 and clamped, so that both ways of evaluating agree."""
    return (images.clamp(0, 1) * 255.0).round() / 255.0


def read_face(file: Path) -> tuple[Tensor, bool]:
    """Read a square face as (3,512,512) in [0,1], and whether it had another size. Raises ImageError."""
    face = read_image(file)
    h, w = face.shape[1:]
    if h != w:
        raise ImageError(f"{file.name}: got {w}×{h} px, expected a square face crop")
    return eight_bit(resize_bicubic(face, (FACE, FACE))), h != FACE


def _save(folder: Path, names: list[str], candidates: Candidates) -> None:
    for (profile, side), images in candidates.items():
        place = folder / profile / ("lq" if side == "input" else side)
        for name, image in zip(names, images, strict=True):
            write_photo(place / f"{name}.png", from_unit(image, np.uint8))
