"""`osdface evaluate`: judge restored faces against references, or a model against faces degraded on the spot.

Two ways in. `evaluate` compares folders of images. `evaluate_degraded` needs only clean faces: it degrades
them reproducibly, restores them and compares both with the clean faces, so a fine-tuner needs no prepared
test set.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osdface_core.devices import pick_device
from osdface_core.errors import ConfigError, ImageError
from osdface_core.files import replacing

from ..data.degrade import Enlarge, degrade
from ..data.degrade_profiles import named_profile
from ..metrics import WeightFinder, load_metrics
from .collect import Collector, RestoredBatch
from .intervals import read_groups
from .pairing import batches, list_images, pair, read_image, resize_bicubic
from .scores import Report
from .thumbs import to_picture

Restore = Callable[[Tensor], Tensor]
FACE = 512
"""[px] side of the faces that models restore."""
CLEAN = "identity"
"""The profile in which the model gets the clean face; it should leave it as it is."""
YARDSTICK_QUALITY = 75
"""JPEG quality of that profile's baseline: libjpeg's default, a difference that viewers accept."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How to measure, in either way of evaluating.

    Attributes:
        metrics: names from `osdface_trainer.metrics.METRICS`; None measures all that can be.
        weights: folder with network weights of the metrics; see `WeightFinder` for where else they are
            sought.
        fid_stats: stored statistics of a set (e.g. FFHQ) for a further FID.
        manifest, group_by: a CSV with a `file` column, and its columns by which means are reported apart.
        seed: of the bootstrap, of KID's subsets and of degradations.
        thumbs: keep small copies of the images for the gallery.
    """

    metrics: tuple[str, ...] | None = None
    weights: Path | None = None
    fid_stats: Path | None = None
    manifest: Path | None = None
    group_by: tuple[str, ...] = ()
    device: str = "auto"
    batch_size: int = 4
    limit: int | None = None
    seed: int = 0
    thumbs: bool = True
    progress: bool = False


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
    pairing = pair(restored, reference, lq)
    items = pairing.items[: options.limit]
    collector = _collector(options)
    collector.report.unmatched = pairing.unmatched
    folders = {"restored": restored, "reference": reference, "lq": lq}
    collector.report.settings |= {side: str(path) for side, path in folders.items() if path}
    with _bar(len(items), options) as bar:
        for batch in batches(items, options.batch_size, collector.report.failed):
            collector.add(batch.names, batch.reference, [RestoredBatch(batch.restored, batch.lq)])
            bar.update(len(batch.names))
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
    files = list(list_images(faces).values())[: options.limit]
    collector = _collector(options)
    report = collector.report
    report.settings |= {"faces": str(faces), "profiles": list(profiles), "enlarge": enlarge}
    if CLEAN in profiles:
        report.notes.append(
            f"{CLEAN}: the model gets the clean face; 'input' is that face as JPEG {YARDSTICK_QUALITY}"
        )
    with _bar(len(files) * len(profiles), options) as bar:
        for start in range(0, len(files), options.batch_size):
            names, clean = _read_faces(files[start : start + options.batch_size], report)
            if names:
                variants = [
                    _variant(names, clean, profile, restore, enlarge, options.seed) for profile in profiles
                ]
                collector.add(names, clean, variants)
                _save(save, names, variants)
            bar.update(options.batch_size * len(profiles))
    return collector.finish()


def face_seed(name: str, seed: int) -> int:
    """Derive a 63-bit seed from a file's stem and the global seed; the same on every machine."""
    text = f"{seed}/{name}".encode("utf-8", "backslashreplace")  # a file name may be no UTF-8
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def _variant(
    names: list[str], clean: Tensor, profile: str, restore: Restore, enlarge: Enlarge, seed: int
) -> RestoredBatch:
    seeds = [face_seed(name, seed) for name in names]
    baseline = degrade(clean, profile, seeds, enlarge="bicubic")
    lq = baseline if enlarge == "bicubic" else degrade(clean, profile, seeds, enlarge=enlarge)
    restored = eight_bit(restore(lq).float().cpu())
    return RestoredBatch(restored, _jpeg(clean) if profile == CLEAN else eight_bit(baseline), profile)


def eight_bit(images: Tensor) -> Tensor:
    """Round to what a file would hold, 1/255 and clamped, so that both ways of evaluating agree."""
    return (images.clamp(0, 1) * 255.0).round() / 255.0


def _jpeg(images: Tensor) -> Tensor:
    """Pass (B,3,H,W) through Pillow's JPEG codec at the yardstick's quality."""
    from ..data.degrade_ops import real_jpeg

    return torch.stack([real_jpeg(image, YARDSTICK_QUALITY) for image in images])


def _read_faces(files: Sequence[Path], report: Report) -> tuple[list[str], Tensor]:
    """Read names and (B,3,512,512) of the readable files; the others go to `report.failed`."""
    names: list[str] = []
    faces: list[Tensor] = []
    for file in files:
        try:
            face = read_image(file)
            if face.shape[1] != face.shape[2]:
                raise ImageError(
                    f"{file.name}: got {face.shape[2]}×{face.shape[1]} px, expected a square face crop"
                )
        except (ImageError, OSError) as error:
            report.failed[file.stem] = str(error)
            continue
        if face.shape[1] != FACE:
            report.settings["resized_faces"] = int(report.settings.get("resized_faces", 0)) + 1
        names.append(file.stem)
        faces.append(eight_bit(resize_bicubic(face, (FACE, FACE))))
    return names, torch.stack(faces) if faces else torch.empty(0, 3, FACE, FACE)


def _save(folder: Path | None, names: list[str], variants: Sequence[RestoredBatch]) -> None:
    for variant in variants if folder else ():
        for side, images in (("restored", variant.restored), ("lq", variant.baseline)):
            for name, image in zip(names, images if images is not None else (), strict=True):
                with replacing(Path(folder or "") / variant.profile / side / f"{name}.png") as temporary:
                    to_picture(image).save(temporary)


def _collector(options: EvaluationOptions) -> Collector:
    if options.batch_size < 1 or (options.limit is not None and options.limit < 1):
        raise ConfigError(
            f"batch size {options.batch_size} and limit {options.limit}: both must be at least 1"
        )
    if options.group_by and not options.manifest:
        raise ConfigError("--group-by needs --manifest CSV, a table with a column 'file'")
    groups = read_groups(options.manifest, options.group_by) if options.manifest else {}
    device = pick_device(options.device)
    metrics = load_metrics(
        options.metrics, WeightFinder(options.weights), device, fid_stats=options.fid_stats, seed=options.seed
    )
    settings: dict[str, Any] = {"seed": options.seed, "device": str(device), "torch": torch.__version__}
    if metrics.sets:
        settings["fid_mode"] = metrics.sets.mode
    report = Report(
        metrics.columns,
        metrics.sets.columns if metrics.sets else (),
        missing=metrics.missing,
        settings=settings,
    )
    return Collector(metrics, report, device, groups, options.thumbs)


def _bar(total: int, options: EvaluationOptions) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="image", desc="evaluate", disable=None if options.progress else True)
