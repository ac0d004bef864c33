"""`python -m osdface_trainer.ablation`: Tables 4 and 5 of the paper on any recipe.

    python -m osdface_trainer.ablation mini --set restorer.init=MODEL --set data.train=faces \
        --set data.val=val --seeds 3 --out runs/ablation

Each variant is the recipe with one part taken away, trained with the same budget, data order and seeds, and
scored on the validation faces. Finished runs are kept: the same command goes on where it stopped.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from osdface_core.cli.allocator import keep_freed_memory
from osdface_core.console import complain, say
from osdface_core.errors import OSDFaceError

from .logging import read_metrics
from .loop import train
from .recipe.config import Recipe, load_recipe

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "everything": (),
    "learned prompt": ("restorer.prompt=learned",),
    "no prompt": ("restorer.prompt=none",),
    "without identity": ("restorer.identity.weight=0",),
    "without EA-DISTS": ("restorer.ea_dists.weight=0",),
    "EA-LPIPS instead": ("restorer.ea_dists.distance=lpips",),
    "without GAN": ("restorer.gan.diffusion.weight=0", "restorer.gan.feature.weight=0"),
}
OTHER_VRE = "VRE without association"
TEXT = "text prompt"
OSEDIFF = (
    "restorer.timestep=999", "restorer.lora.encoder=true", "restorer.gan.vsd.weight=1",
    "restorer.perceptual.weight=2", "restorer.ea_dists.weight=0", "restorer.identity.weight=0",
    *VARIANTS["without GAN"],
)  # fmt: skip
"""What makes another recipe's generator OSEDiff's; rank, targets and rates stay that recipe's."""
METRICS = ("psnr", "perceptual", "identity")
Scores = dict[str, float]


def variants(other_vre: str, text_encoder: str = "", base: bool = False) -> dict[str, tuple[str, ...]]:
    """Map names to `--set` assignments; a VRE trained without the association loss adds its own row, and so
    do a text encoder and a frozen base, which can be OSEDiff (supplement C).
    """
    extra: dict[str, tuple[str, ...]] = {}
    text = ("restorer.prompt=text", f"restorer.text_encoder={text_encoder}")
    if other_vre:
        extra[OTHER_VRE] = (f"restorer.vre={other_vre}",)
    if text_encoder:
        extra[TEXT] = text
    if base:
        extra["OSEDiff, VRE"] = OSEDIFF
    if base and text_encoder:
        extra["OSEDiff, text"] = (*OSEDIFF, *text)
    return {**VARIANTS, **extra}


def score(recipe: Recipe) -> Scores:
    """Train (or continue, or only read) one run and return its last validation scores.

    Raises:
        KeyboardInterrupt: the run was asked to stop (Ctrl-C, SIGTERM) and has saved where it was.
    """
    folder = Path(recipe.run.dir) / "restorer"
    if train(recipe, "restorer", quiet=True).reason == "interrupted":
        raise KeyboardInterrupt
    last = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "val"][-1]
    return {key: value for key, value in last.items() if isinstance(value, float)}


def table(results: Mapping[str, Sequence[Scores]], profiles: Sequence[str]) -> str:
    """Write Markdown: per variant and profile the mean over seeds, from two on ± their standard deviation."""
    columns = [(profile, metric) for profile in profiles for metric in METRICS]
    lines = [
        "| variant | " + " | ".join(f"{metric}, {profile}" for profile, metric in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, seeds in results.items():
        cells = [_cell([s[f"{profile}/{metric}"] for s in seeds], metric) for profile, metric in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float], metric: str) -> str:
    digits = 2 if metric == "psnr" else 3
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run all variants and print the table after each run; 0 done, 1 failed, 130 interrupted."""
    parser = argparse.ArgumentParser(
        "python -m osdface_trainer.ablation", description="Tables 4 and 5 of the paper."
    )
    parser.add_argument("recipe", help="a TOML file or a shipped recipe; data.val must be set")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="overrides")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs per variant (3)")
    parser.add_argument("--only", default="", metavar="LIST", help="variants, separated by commas (all)")
    parser.add_argument(
        "--other-vre", default="", metavar="FILE", help="a VRE trained with vre.assoc.weight=0"
    )
    parser.add_argument(
        "--text-encoder", default="", metavar="DIR", help="a base with tokenizer/ and text_encoder/"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), metavar="DIR")
    args = parser.parse_args(argv)
    results: dict[str, list[Scores]] = {}
    try:
        base = load_recipe(args.recipe, args.overrides).restorer.mode == "lora"
        every = variants(args.other_vre, args.text_encoder, base)
        chosen = {n: v for n, v in every.items() if not args.only or n in args.only.split(",")}
        for seed in range(1, args.seeds + 1):
            for name, changes in chosen.items():
                place = args.out / f"{name.replace(' ', '_')}_{seed}"
                sets = [*args.overrides, *changes, f"run.seed={seed}", f"run.dir={json.dumps(str(place))}"]
                recipe = load_recipe(args.recipe, sets)
                results.setdefault(name, []).append(score(recipe))
                report = table(results, recipe.restorer.validation.profiles)
                (args.out / "table.md").write_text(report + "\n", encoding="utf-8")
                say(f"{name}, seed {seed}\n{report}\n")
    except OSDFaceError as error:
        complain(f"ablation: {error}")
        return 1
    except KeyboardInterrupt:
        complain("ablation: interrupted; the same command goes on where it stopped")
        return 130
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
