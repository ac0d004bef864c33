"""Skin tone and pose of faces, to group an evaluation by.

    python tools/face_labels.py faces/ -o labels.csv
    osdface evaluate --degrade medium faces/ --manifest labels.csv --group-by skin,pose

It needs scikit-image (extra `demo`).

Both are measured from the picture, not annotated: skin tone as the individual typology angle of the cheeks
(Chardon et al. 1991; limits of Del Bino et al. 2006), which light and white balance shift, and pose as where
the nose stands between the eyes.
"""

import argparse
import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from osdface_core.errors import OSDFaceError
from osdface_core.faces import detect
from osdface_core.files import replacing
from osdface_trainer.evaluation.pairing import list_images, read_image

SIDE = 512
CHEEKS = ((176, 318), (336, 318))  # centres of the two patches in the FFHQ-512 template, x and y [px]
PATCH = 32  # side of a patch [px]
SKIN = ((41.0, "light"), (10.0, "intermediate"), (-math.inf, "dark"))  # lowest angle of each [degrees]
TURNED = 0.12  # nose off the middle of the eyes, in eye distances


def typology_angle(face: Tensor) -> float:
    """Compute ITA = atan((L* - 50) / b*) of the cheeks' median colour [degrees]; high is light.

    Args:
        face: (3, 512, 512) in [0, 1], sRGB, aligned.
    """
    from skimage.color import rgb2lab

    half = PATCH // 2
    cheeks = [face[:, y - half : y + half, x - half : x + half].flatten(1) for x, y in CHEEKS]
    colour = torch.cat(cheeks, dim=1).median(dim=1).values
    lightness, _, yellow = rgb2lab(colour.numpy(force=True))
    return math.degrees(math.atan2(lightness - 50.0, yellow))


def turn(landmarks: np.ndarray) -> float:
    """Measure how far the nose stands off the middle of the eyes, in eye distances, along their line.

    Args:
        landmarks: (5, 2) eyes, nose, mouth corners.
    """
    left, right, nose = (np.asarray(point, dtype=float) for point in landmarks[:3])
    across = right - left
    return abs(float((nose - (left + right) / 2) @ across / (across @ across)))


def labels(face: Tensor) -> dict[str, str]:
    """Label an aligned face: `skin` and `pose`, which is `unknown` where no face is found."""
    angle = typology_angle(face)
    pose = "unknown"
    if found := detect(face, "mtcnn"):
        pose = "turned" if turn(np.asarray(found[0].landmarks)) > TURNED else "frontal"
    return {"skin": next(name for lowest, name in SKIN if angle > lowest), "pose": pose}


def write_labels(files: Mapping[str, Path], path: Path) -> None:
    """Write a CSV with the columns file, skin, pose.

    Args:
        files: by stem, of square aligned faces.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["file", "skin", "pose"])
        writer.writeheader()
        for file in files.values():
            face = torch.nn.functional.interpolate(read_image(file)[None], (SIDE, SIDE), mode="area")[0]
            writer.writerow({"file": file.name, **labels(face)})


def main(argv: Sequence[str] | None = None) -> int:
    """Label a folder of faces; 1 if it cannot be read."""
    parser = argparse.ArgumentParser("face_labels", description="Skin tone and pose.")
    parser.add_argument("faces", type=Path, help="folder of aligned faces")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="CSV")
    args = parser.parse_args(argv)
    try:
        write_labels(list_images(args.faces), args.out)
    except OSDFaceError as error:
        print(f"labels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
