"""The weight files that a recipe needs, all of them looked at before anything is built."""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from osdface_core.checkpoint import missing_parts, read_header
from osdface_core.errors import CheckpointError, ConfigError, OSDFaceError
from osdface_core.file_kinds import kind_of_file
from osdface_core.loading import resolve
from osdface_core.models.identity import MOBILEFACENET_FILE, MOBILEFACENET_SOURCE
from osdface_core.models.sd21 import WHERE, find_weight_files
from osdface_core.models.text import text_files
from osdface_core.released import RELEASED_FILES
from osdface_core.weights import TAESD_SOURCE, find_weights

from .losses.features import backbone_spec
from .recipe.config import Recipe, StageName


@dataclass(frozen=True)
class WeightCheck:
    """One key of a recipe that stands for weights.

    Attributes:
        key: of the recipe, e.g. `restorer.base`.
        given: whether the recipe names a place; else the usual one was searched.
        files: what was found.
        problem: why they cannot be used, with what they are and where they come from.
    """

    key: str
    given: bool
    files: tuple[Path, ...] = ()
    problem: OSDFaceError | None = None


def check_weights(recipe: Recipe, stage: StageName) -> list[WeightCheck]:
    """Look for every weight file that a stage reads, and at its beginning and end: no tensor is read."""
    return [_check(*wanted) for wanted in (_vre(recipe) if stage == "vre" else _restorer(recipe))]


def require_weights(recipe: Recipe, stage: StageName) -> None:
    """Refuse to start without all weight files.

    Raises:
        ConfigError: a key has to be set. CheckpointError: a file is missing or unusable. One line per key.
    """
    bad = [check for check in check_weights(recipe, stage) if check.problem]
    if bad:
        lines = (f"  {check.key}: {check.problem}" for check in bad)
        unset = any(isinstance(check.problem, ConfigError) for check in bad)
        kind = ConfigError if unset else CheckpointError
        raise kind("weights that this recipe needs are missing or cannot be used:", *lines)


NO_BASE = (
    "restorer.base is empty: give a Stable Diffusion 2.1-base, a diffusers folder or a single-file "
    ".safetensors"
)
NO_CODEC = (
    "restorer.codec_init is empty: give the folder of taesd_encoder.safetensors and "
    f"taesd_decoder.safetensors from {TAESD_SOURCE}"
)
Find = Callable[[], list[Path]]
Wanted = tuple[str, str, Find]


def _check(key: str, value: str, find: Find) -> WeightCheck:
    try:
        files = find()
        for file in files:
            check_readable(file)
    except OSDFaceError as error:
        return WeightCheck(key, bool(value), problem=error)
    return WeightCheck(key, bool(value), tuple(files))


def check_readable(path: Path) -> None:
    """Find a truncated file, or one of another kind, without reading its tensors.

    Raises:
        CheckpointError: saying what it is.
    """
    if kind := kind_of_file(path):
        raise CheckpointError(f"{path} is {kind}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # compares the header with the file's length
                return
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # torch.save since 1.6; its table stands at the end
        if zipped and not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path} is truncated; get it again")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file ({error}); get it again"
        ) from error


def _vre(recipe: Recipe) -> Iterator[Wanted]:
    term = recipe.vre.perceptual
    if term.weight > 0:
        yield _features("vre.perceptual.file", term.file, term.net)


def _restorer(recipe: Recipe) -> Iterator[Wanted]:
    cfg = recipe.restorer
    if cfg.init:
        yield "restorer.init", cfg.init, lambda: model_files(cfg.init)
    yield from _prompt(recipe)
    if cfg.mode == "lora":
        yield "restorer.base", cfg.base, lambda: _base(cfg.base)
    elif cfg.codec_init != "random" and (cfg.codec_init or not _is_whole(cfg.init)):
        yield "restorer.codec_init", cfg.codec_init, lambda: _taesd(cfg.codec_init)
    scored = cfg.validation.metrics if recipe.run.validate_every and recipe.data.val else ()
    if max(cfg.perceptual.weight, cfg.preview.perceptual) > 0 or "perceptual" in scored:
        yield _features("restorer.perceptual.file", cfg.perceptual.file, cfg.perceptual.net)
    if cfg.ea_dists.weight > 0:
        yield _features("restorer.ea_dists.file", cfg.ea_dists.file, cfg.ea_dists.net)
    if cfg.gan.feature.weight > 0:
        yield _features("restorer.gan.feature.file", cfg.gan.feature.file, cfg.gan.feature.net)
    if max(cfg.identity.weight, cfg.preview.identity) > 0 or "identity" in scored:
        place = (cfg.identity.file, MOBILEFACENET_FILE, "MobileFaceNet", MOBILEFACENET_SOURCE)
        yield "restorer.identity.file", cfg.identity.file, lambda: [find_weights(*place)]


def _prompt(recipe: Recipe) -> Iterator[Wanted]:
    """The VRE's file: `restorer.vre`, else `init`'s, else this run's stage 1; or the text encoder."""
    cfg = recipe.restorer
    if cfg.prompt == "text":
        place = cfg.text_encoder or cfg.base
        yield "restorer.text_encoder", place, lambda: text_files(place)
    if cfg.vre:
        yield "restorer.vre", cfg.vre, lambda: model_files(cfg.vre)
    elif cfg.prompt == "vre" and not cfg.init:
        yield "restorer.vre", "", lambda: model_files(str(own_vre(recipe)))


def own_vre(recipe: Recipe) -> Path:
    """Find what this run's stage 1 exported; ConfigError where it did not run."""
    own = Path(recipe.run.dir).expanduser() / "vre" / "export.safetensors"
    if not own.is_file():
        raise ConfigError(
            f"no VRE: {own} does not exist. "
            "Run `osdface train vre` with this recipe first, or set restorer.vre"
        )
    return own


def model_files(source: str) -> list[Path]:
    """List the files of a model by the names that `OSDFacePipeline.from_pretrained` takes.

    Args:
        source: `mini`, a checkpoint, or a released folder.
    Raises:
        CheckpointError: nothing there, or nothing that is a model.
    """
    path = resolve(source)
    if not path.is_dir():
        if path.suffix == ".safetensors" or not path.is_file():
            read_header(path)
        return [path]
    files = [path / name for name in RELEASED_FILES]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}; a released folder holds {', '.join(RELEASED_FILES)}"
        )
    return files


def _is_whole(source: str) -> bool:
    """Whether `init` names a checkpoint with UNet and codec; a broken one is reported under its own key."""
    try:
        config, _, names = read_header(resolve(source))
    except OSDFaceError:
        return bool(source)
    return not missing_parts(config, names)


def _base(base: str) -> list[Path]:
    if not base:
        raise ConfigError(NO_BASE)
    path = Path(base).expanduser()
    if path.is_dir():
        return [file for part in ("unet", "vae") for file in find_weight_files(path / part)]
    if not path.is_file():
        raise CheckpointError(f"no base model at {path}; {WHERE}")
    return [path]


def _taesd(folder: str) -> list[Path]:
    if not folder:
        raise ConfigError(NO_CODEC)
    names = ("taesd_encoder.safetensors", "taesd_decoder.safetensors")
    return [find_weights(folder, name, "TAESD", TAESD_SOURCE) for name in names]


def _features(key: str, file: str, net: str) -> Wanted:
    name = backbone_spec(net).file
    source = f"https://download.pytorch.org/models/{name}"
    return key, file, lambda: [find_weights(file, name, f"torchvision {net}", source)]
