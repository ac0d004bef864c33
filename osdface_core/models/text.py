"""Prompts from words: the text encoder of a Stable Diffusion base (the paper's Table 4, supplement C)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

PARTS = ("tokenizer", "text_encoder")
WEIGHTS = ("model.safetensors", "model.fp16.safetensors")


class TextPrompts(nn.Module):
    """Tokenizer and frozen text encoder: texts to prompts, as diffusers' pipelines make them."""

    def __init__(self, tokenizer: Any, encoder: nn.Module) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.encoder = encoder.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Encode B texts as prompts (B, 77, D), float32; what is longer than 77 tokens is cut."""
        words = self.tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt",
            max_length=self.tokenizer.model_max_length,
        )  # fmt: skip
        return self.encoder(words.input_ids.to(next(self.parameters()).device))[0].float()


def text_files(base: str | Path) -> list[Path]:
    """Find the weights of a base's text encoder.

    Args:
        base: a diffusers folder with tokenizer/ and text_encoder/.
    Raises:
        CheckpointError: it has no such parts.
    """
    folder = Path(base).expanduser()
    for part in PARTS:
        if not (folder / part).is_dir():
            raise CheckpointError(
                f"no {part}/ in {folder}: a text prompt needs a base as a diffusers folder, with "
                f"{' and '.join(f'{name}/' for name in PARTS)}"
            )
    found = [folder / "text_encoder" / name for name in WEIGHTS]
    if not (there := [file for file in found if file.is_file()]):
        raise CheckpointError(f"{folder / 'text_encoder'} has no {WEIGHTS[0]}; download it again")
    return there[:1]


def load_text(base: str | Path) -> TextPrompts:
    """Load tokenizer and text encoder of a base, float32 on the CPU; never touches the network.

    Raises:
        CheckpointError: missing or damaged files, or no transformers.
    """
    (file,) = text_files(base)
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise CheckpointError("a text prompt needs transformers: pip install 'osdface[text]'") from error
    variant = "fp16" if ".fp16." in file.name else None
    how: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "variant": variant}
    try:
        tokenizer = CLIPTokenizer.from_pretrained(file.parents[1] / PARTS[0], local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(file.parent, dtype=torch.float32, **how)
    except Exception as error:  # damaged files, in as many kinds as there are readers
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"cannot read the text encoder in {file.parents[1]}: {reason}") from error
    return TextPrompts(tokenizer, encoder)


def sidecar_tags(photo: Path) -> str:
    """Read what a photo shows from the text file beside it: `face.png`, `face.txt`; "" where there is none.

    Raises:
        CheckpointError: the file is no UTF-8 text.
    """
    file = photo.with_suffix(".txt")
    try:
        return " ".join(file.read_text(encoding="utf-8").split())
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: no readable text ({error})") from error
