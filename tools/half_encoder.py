"""Give a self-contained model an encoder that starts at half size: less than half of the arithmetic.

    python tools/half_encoder.py FACES --model FILE --out half.safetensors

FACES is a folder of clean aligned faces, FILE a checkpoint with an encoder of TAESD's four stages: what a
training with `restorer.codec_init` exports, and what `mini` was until it got this one. The new encoder takes
2 × 2 pixels as 12 channels and leaves out the stage at full size. Its first stage learns what the
old encoder's second stage answers for degraded faces (hints; FitNets, arXiv 1412.6550), then all of it learns
the old one's latents. What the rest of the model is given hardly changes, so the rest is kept as it is.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import trange

from osdface_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from osdface_core.cli.allocator import keep_freed_memory
from osdface_core.errors import OSDFaceError
from osdface_core.loading import resolve
from osdface_core.models.tiny_codec import TinyCodec
from osdface_trainer.data.degrade import degrade
from osdface_trainer.evaluation.evaluate import eight_bit, read_face
from osdface_trainer.evaluation.pairing import list_images
from osdface_trainer.optim import lr_factor, set_lr

PROFILES = ("severe", "medium", "mild", "nearly_clean")
POOL = 64  # degraded faces that windows are cut from; one is drawn anew at every step
BLOCKS = (2, 3, 3)  # of the new encoder's stages


def degraded_faces(files: Sequence[Path], seed: int) -> Iterator[Tensor]:
    """Read faces in random order for ever, each degraded by the next profile or left clean: (3, 512, 512)."""
    order = np.random.default_rng(seed)
    for number in itertools.count():
        face = read_face(files[int(order.integers(len(files)))])[0][None]
        profile = (*PROFILES, None)[number % (len(PROFILES) + 1)]
        yield (eight_bit(degrade(face, profile, [seed + number], enlarge="bicubic")) if profile else face)[0]


def windows(faces: Iterator[Tensor], count: int, side: int, seed: int) -> Iterator[Tensor]:
    """Cut (count, 3, side, side) in [0, 1] from a pool of faces; half of the windows are mirrored."""
    pool = list(itertools.islice(faces, POOL))
    draw = np.random.default_rng(seed)
    for step in itertools.count():
        pool[step % POOL] = next(faces)
        cut = []
        for face in (pool[i] for i in draw.integers(POOL, size=count)):
            y, x = (8 * int(at) for at in draw.integers((face.shape[1] - side) // 8 + 1, size=2))
            window = face[:, y : y + side, x : x + side]
            cut.append(window.flip(-1) if draw.random() < 0.5 else window)
        yield torch.stack(cut)


def relative_error(answer: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the channels of (squared error / variance); channels that hardly vary count less."""
    error, spread = (answer - wanted).square().mean((0, 2, 3)), wanted.var((0, 2, 3))
    return (error / (spread + 0.2 * spread.mean())).mean()


def fit(student: nn.Module, teacher: nn.Module, batches: Iterator[Tensor], steps: int, rate: float) -> float:
    """Train `student`, which gets 2 × 2 pixels as channels, to answer as `teacher` does.

    Returns: the mean `relative_error` of the last 100 steps. `student` keeps the average of its weights.
    """
    average = EMAModel(student.parameters(), decay=0.995)
    optimizer = torch.optim.AdamW(student.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    errors: list[float] = []
    with trange(steps) as bar:
        for step in bar:
            set_lr(optimizer, rate, lr_factor(step, steps, warmup=50, schedule="cosine", final=0.01))
            faces = next(batches)
            with torch.no_grad():
                wanted = teacher(faces)
            loss = relative_error(student(F.pixel_unshuffle(faces, 2)), wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            average.step(student.parameters())
            errors.append(loss.item())
            bar.set_postfix(error=f"{np.mean(errors[-100:]):.4f}")
    average.copy_to(student.parameters())
    return float(np.mean(errors[-100:]))


def save(student: TinyCodec, old: Checkpoint, out: Path) -> None:
    """Write the teacher's checkpoint `old` with the new encoder, in the dtype of the old one."""
    dtype = old.tensors["codec.encoder.layers.0.weight"].dtype
    tensors = {name: tensor for name, tensor in old.tensors.items() if not name.startswith("codec.encoder.")}
    tensors |= {f"codec.encoder.{name}": one.to(dtype) for name, one in student.encoder.state_dict().items()}
    config = replace(old.config, codec=replace(old.config.codec, encoder_blocks=BLOCKS))
    save_checkpoint(out, tensors, config, old.training)


def codec_of(checkpoint: Checkpoint) -> TinyCodec:
    """Build a checkpoint's codec in float32."""
    codec = TinyCodec(checkpoint.config.codec)
    codec.load_state_dict(checkpoint.part("codec"))
    return codec.float()


def run(args: argparse.Namespace) -> None:
    """Train the new encoder in two parts; `args.out` is written after each."""
    torch.manual_seed(args.seed)
    files = list(list_images(args.faces).values())
    old = load_checkpoint(resolve(args.model))
    if old.config.codec.kind != "tiny" or len(old.config.codec.encoder_blocks) != 4:
        raise OSDFaceError(f"{args.model} has no encoder of TAESD's four stages to learn from")
    teacher = codec_of(old)
    student = TinyCodec(replace(old.config.codec, encoder_blocks=BLOCKS))
    first = 1 + BLOCKS[0]  # layers of the new first stage, which stand for TAESD's first six
    for new, known in zip(student.encoder.layers[first:], teacher.encoder.layers[6:], strict=True):
        new.load_state_dict(known.state_dict())
    if args.init:
        start = load_checkpoint(resolve(args.init))
        if start.config.codec.encoder_blocks != BLOCKS:
            raise OSDFaceError(f"--init {args.init} has no encoder that starts at half size: leave it out")
        student.encoder.load_state_dict(codec_of(start).encoder.state_dict())
    faces = degraded_faces(files, args.seed)
    for part, last, wanted, batch, side, rate in (
        ("hints", first, 6, 8, 64, 1e-3),
        ("latents", None, None, 4, 128, args.rate),
    ):
        steps = getattr(args, part)
        if not steps:
            continue
        learner, known = student.encoder.layers[:last], teacher.encoder.layers[:wanted].requires_grad_(False)
        error = fit(learner, known, windows(faces, batch, side, args.seed), steps, rate)
        save(student, old, args.out)
        print(f"{part}: {steps} steps, relative error {error:.4f}: {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Train and write; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser("half_encoder", description="An encoder that starts at half size.")
    parser.add_argument("faces", type=Path, help="folder of clean aligned faces")
    parser.add_argument("--model", required=True, metavar="FILE", help="a checkpoint with TAESD's encoder")
    parser.add_argument("--init", metavar="FILE", help="go on from mini, or a file that this script wrote")
    parser.add_argument("--out", type=Path, default=Path("half.safetensors"), metavar="FILE")
    parser.add_argument("--hints", type=int, default=2200, metavar="N", help="steps of the first stage alone")
    parser.add_argument("--latents", type=int, default=2500, metavar="N", help="steps of the whole encoder")
    parser.add_argument("--rate", type=float, default=1e-4, help="first learning rate of the latents' steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        run(args)
    except OSDFaceError as error:
        print(f"half_encoder: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
