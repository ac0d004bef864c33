"""Judge the way of videos against the same frames restored one by one, and its memory against the length.

    python tools/video_quality.py FACE.jpg --weights WEIGHTS      flicker, identity, perceptual distance, time
    python tools/video_quality.py FACE.jpg --memory 300           peak memory at 300 and 3,000 frames of 720p
    python tools/video_quality.py FILM.mp4 --film --weights WEIGHTS   the same for a real film of one face

FACE.jpg is a sharp aligned face of 512 px. It moves, turns and grows smoothly over a background; every frame
is degraded alike, but for its noise. Where the face is in each frame is known: frames are compared there. In
a real film it is where MTCNN finds it in the input, averaged over neighbouring frames.
"""

import argparse
import itertools
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torch.nn.functional import avg_pool2d

from osdface_core import OSDFacePipeline
from osdface_core.faces import detect
from osdface_core.faces.align import fit_similarity
from osdface_core.faces.geometry import inverse, warp
from osdface_core.options import DetectOptions
from osdface_core.video import restore_stream, restore_video
from osdface_core.video.restore import VideoPlan
from osdface_trainer.metrics import WeightFinder, load_metrics

SMALL, LARGE = (480, 360), (1280, 720)
CHECKS = 10
"""Times at which memory is told."""
SECOND = 25
"""Frames."""
SPAN = 3  # frames on either side
INNER = slice(112, 400)
"""The middle of the crop, where restored and original are not blended [px]."""


def placement(number: int, size: tuple[int, int]) -> np.ndarray:
    """Return where the crop's pixels are in a frame, 2x3: side about 0.85 of the height, slowly moving."""
    phase = number / 40
    scale = 0.85 * size[1] / 512 * (1 + 0.06 * math.sin(1.7 * phase))
    angle = math.radians(6 * math.sin(2.3 * phase))
    x = size[0] / 2 + 0.12 * size[1] * math.sin(2.9 * phase)
    y = size[1] / 2 + 0.04 * size[1] * math.cos(2 * phase)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[cos, -sin, x - 255.5 * (cos - sin)], [sin, cos, y - 255.5 * (sin + cos)]])


def placements(size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield `placement` of all frames, without end."""
    return (placement(number, size) for number in itertools.count())


def found(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Find where the crop's pixels are in each frame of a film of one face, 2x3."""
    each = [max(detect(frame, "mtcnn"), key=lambda face: face.size).landmarks for frame in frames]
    reach = [min(SPAN, number, len(each) - 1 - number) for number in range(len(each))]
    near = [each[number - span : number + span + 1] for number, span in enumerate(reach)]
    return [inverse(fit_similarity(np.mean(points, axis=0))) for points in near]


def clean_frames(photo: Path, count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3) uint8 of the face on its way."""
    face = Image.open(photo).convert("RGB").resize((512, 512))
    back = torch.from_numpy(np.array(face.resize(size).filter(ImageFilter.GaussianBlur(25)))).permute(2, 0, 1)
    shape = Image.new("L", (512, 512))
    ImageDraw.Draw(shape).ellipse((30, 8, 482, 508), fill=255)
    layers = (np.array(face), np.array(shape.filter(ImageFilter.GaussianBlur(6)))[..., None])
    layer = torch.from_numpy(np.concatenate(layers, axis=2)).permute(2, 0, 1).float()
    for number in range(count):
        moved = warp(layer, inverse(placement(number, size)), (size[1], size[0]))
        frame = back + (moved[:3] - back) * (moved[3:] / 255).clamp(0, 1)
        yield frame.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def degraded(frame: np.ndarray, number: int) -> np.ndarray:
    """Blur, shrink and return a frame alike each time, with noise of its own."""
    image, size = Image.fromarray(frame), (frame.shape[1], frame.shape[0])
    image = (
        image.filter(ImageFilter.GaussianBlur(1.5)).resize((size[0] // 3, size[1] // 3), 2).resize(size, 3)
    )
    noise = np.random.default_rng(number).normal(0, 5, frame.shape)
    return (np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8)


def write(path: Path, frames: Iterator[np.ndarray], codec: str, form: str, repeats: int = 1) -> None:
    """Encode frames at 25 a second, the same packets several times over."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=25, options={"preset": "veryfast", "bf": "0"})
        packets: list[Any] = []
        for number, frame in enumerate(frames):
            if not number:
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = form
            picture = av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format=form)
            picture.pts, picture.time_base = number, Fraction(1, 25)
            packets += stream.encode(picture)
        packets += stream.encode()
        copies = [(packet.pts, bytes(packet), packet.is_keyframe, packet.time_base) for packet in packets]
        for turn in range(repeats):
            for pts, data, key, base in copies:
                packet = av.Packet(data)
                packet.pts = packet.dts = pts + round(turn * len(copies) / 25 / base)
                packet.time_base, packet.stream, packet.is_keyframe = base, stream, key
                out.mux(packet)


def crops_of(frames: Iterable[np.ndarray], places: Iterable[np.ndarray]) -> Tensor:
    """Cut the face out of frames by its places: (N, 3, 512, 512) in [0, 1]."""
    crops = []
    for frame, place in zip(frames, places, strict=False):
        image = torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 255
        crops.append(warp(image, place, (512, 512), padding="border"))
    return torch.stack(crops)


def decoded(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def flicker(crops: Tensor) -> float:
    """Mean difference of neighbouring frames in the face's coordinates, in 8-bit steps."""
    inner = crops[:, :, INNER, INNER]
    return float((inner[1:] - inner[:-1]).abs().mean() * 255)


def quality(args: argparse.Namespace, folder: Path) -> None:
    """Print the measures of input, frame by frame and video against the clean clip."""
    clean = list(clean_frames(args.face, args.frames, SMALL))
    source = folder / "in.mkv"
    write(source, (degraded(frame, i) for i, frame in enumerate(clean)), "ffv1", "yuv444p")
    judge(args, source, folder, {"clean": clean})


def judge(args: argparse.Namespace, source: Path, folder: Path, clean: dict[str, list[np.ndarray]]) -> None:
    """Restore both ways and print the measures against the clean frames, else against the input's."""
    pipeline = OSDFacePipeline.from_pretrained(args.model, device="cpu", dtype="fp32", engine=args.engine)
    target, inputs = args.keep or folder / "out.mkv", list(decoded(source))
    start = time.process_time()
    single = [np.asarray(pipeline(frame, detector="mtcnn").image) for frame in inputs]
    middle = time.process_time()
    restore_video(pipeline, source, target, detector="mtcnn")
    seconds = time.process_time() - middle, middle - start
    sides = clean | {"input": inputs, "frame by frame": single, "video": list(decoded(target))}
    places = list(itertools.islice(placements(SMALL), len(inputs))) if clean else found(inputs)
    crops = {name: crops_of(frames, places) for name, frames in sides.items()}
    metrics = load_metrics(("perceptual", "identity"), WeightFinder(args.weights), torch.device("cpu"))
    print(f"{'':16}{'flicker':>9}{'identity':>10}{'perceptual':>12}")
    for name, scores in metrics.score(next(iter(crops.values())), crops).items():
        identity, perceptual = (np.mean(scores[key]) for key in ("identity_cos", "perceptual"))
        print(f"{name:16}{flicker(crops[name]):9.2f}{identity:10.3f}{perceptual:12.4f}")
    print(f"CPU time per frame, video / frame by frame: {seconds[0] / seconds[1]:.2f}")


def scenes(photo: Path, count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3) uint8: the face for a second, then five without one, again and again."""
    faces = list(clean_frames(photo, SECOND, size))
    empty = np.asarray(Image.fromarray(faces[0]).filter(ImageFilter.GaussianBlur(60)))
    for number in range(count):
        second, frame = divmod(number, SECOND)
        yield empty if second % 6 else faces[frame]


def memory(args: argparse.Namespace, folder: Path) -> None:
    """Print the peak memory of a process of its own for two lengths."""
    peaks, last = [], 0
    for count in (args.memory, 10 * args.memory):
        source = folder / f"{count}.mp4"
        frames = scenes(args.face, args.memory, args.size)
        write(source, frames, "libx264", "yuv420p", count // args.memory)
        print(f"{count} frames of {args.size[0]}x{args.size[1]}", flush=True)
        command = [sys.executable, __file__, str(source), "--child", "--size", *map(str, args.size)]
        with subprocess.Popen(command, stdout=-1) as run:
            for line in run.stdout or ():
                print(line.decode(), end="", flush=True)
                last = int(line.split()[-1])
        peaks.append(last)
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


def child(source: Path, size: tuple[int, int]) -> None:
    """Restore a video by a blur instead of a model; print the peak [MiB] now and then, and at the end."""
    plan = VideoPlan(DetectOptions(detector="mtcnn", effort="fast", min_face=0.4 * size[1]))

    def tell(done: int, total: int) -> None:
        if done % (total // CHECKS) == 0:
            print(f"{done:8} frames: peak {peak()}", flush=True)

    restore_stream(
        source,
        source.with_stem("out"),
        lambda crops: avg_pool2d(crops, 5, 1, 2),
        torch.device("cpu"),
        plan,
        progress=tell,
    )
    print(f"the whole way: peak {peak()}")


def peak() -> int:
    """Return the most memory that this process had [MiB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("face", type=Path, help="a sharp aligned face; the film of --film")
    parser.add_argument("--film", action="store_true", help="judge a real film, against its own frames")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="SqueezeNet 1.0 and MobileFaceNet")
    parser.add_argument("--frames", type=int, default=20, metavar="N")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where the restored video stays")
    parser.add_argument("--memory", type=int, metavar="N", help="measure memory at N and 10 N frames instead")
    parser.add_argument("--size", type=int, nargs=2, default=LARGE, metavar="PX", help="of its frames")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.face, args.size)
    with tempfile.TemporaryDirectory() as folder:
        if args.film:
            judge(args, args.face, Path(folder), {})
        else:
            (memory if args.memory else quality)(args, Path(folder))


if __name__ == "__main__":
    main()
