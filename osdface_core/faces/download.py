"""Fetch a detector's weights: the one file that uses the network, where somebody chose them by name."""

from __future__ import annotations

import hashlib
import logging
import urllib.request
from pathlib import Path

from ..errors import DetectorError
from ..files import replacing

log = logging.getLogger(__name__)


def fetch(url: str, sha256: str, folder: Path) -> Path:
    """Download a weight file, check it, and only then give it its name.

    Raises:
        DetectorError: if the network, the disk or the checksum fails; nothing half-written stays behind.
    """
    target = folder / url.rsplit("/", 1)[-1]
    advice = f"download {url} into {folder} yourself, or choose mtcnn, which needs no download"
    log.info("fetching %s to %s", url, target)
    digest = hashlib.sha256()
    try:
        with replacing(target) as part:
            with part.open("wb") as file, urllib.request.urlopen(url, timeout=30) as answer:
                while block := answer.read(1 << 20):
                    file.write(block)
                    digest.update(block)
            if digest.hexdigest() != sha256:
                raise DetectorError(
                    f"{url} arrived damaged: got sha256 {digest.hexdigest()[:12]}..., "
                    f"expected {sha256[:12]}...; try again, or {advice}"
                )
    except OSError as error:
        raise DetectorError(f"{target.name} cannot be fetched ({error}): {advice}") from error
    return target
