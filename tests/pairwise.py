"""Valid flags in all pairs: every two values of two flags meet in a run, and every promise of a run is kept.

    PYTHONPATH=. python tests/pairwise.py --sets=300

A covering array over the flags of `stylize` is drawn by a seed, and another one until there are so many sets. Each
is run on a network of few channels, from its own `run.flags` in another folder, a second time in its own, and
verified. `tests/test_fuzz.py` is the short form.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import narrow
import numpy as np
from forked import command
from kill import leftovers, results
from PIL import Image

from jaxstyle import training  # noqa: F401 - imports once what every fork needs
from jaxstyle.network import weights

LIMIT = 240.0  # seconds

#: Values of each flag; None leaves it out. `@` stands for the folder of the pictures.
FLAGS: dict[str, Sequence[str | None]] = {
    "content": ("@/photo.png", "@/photo.jpg", "@/grey.png"),
    "style": ("@/style.png", "@/style.png:2 @/other.png", "sample:facets"),
    "size": ("48", "40x33", "64"),
    "resize": ("lanczos", "nearest", "box"),
    "loss": ("gatys", "ivanov2017"),
    "content_loss": (None, "squares", "self_similarity"),
    "total": (None, "sum", "product"),
    "style_loss": (None, "gram", "wasserstein", "sliced", "mrf", "nearest", "split", "rot", "cross"),
    "content_weight": (None, "0", "3"),
    "style_weight": (None, "0", "20"),
    "tv_weight": (None, "0", "0.1"),
    "style_layer": ("block1_conv1", "block1_conv2:0.5 block2_conv1"),
    "style_scale": ("1", "0.7", "1.9"),
    "pooling": ("max", "average", "l2"),
    "padding": (None, "zero", "edge"),
    "preserve_color": ("none", "luminance", "histogram", "linear", "palette"),
    "content_mask": (None, "@/left.png"),
    "style_mask": (None, "@/top.png"),
    "regions": (None, "2", "3"),
    "content_weight_mask": (None, "@/left.png"),
    "init": ("content", "noise", "style_statistics", "ivanov2017", "@/style.png"),
    "steps": ("1", "3", "4"),
    "evaluations": (None, "3"),
    "scales": (None, "1", "2", "3"),
    "optimizer": (
        *("lbfgs", "adam", "scipy-lbfgs", "nonlinear-cg", "optax-lbfgs", "gd:learning_rate=1e9"),
        *("adafactor:learning_rate=1", "noisy_sgd:learning_rate=1", "lbfgs@pyramid"),
    ),
    "parametrization": (None, "pixels", "fourier", "pyramid"),
    "clip": ("false", "true"),
    "keep": ("last", "best", "average"),
    "save_every": ("0", "1"),
    "bits": ("8", "16"),
    "seed": ("0", "4294967295"),
    "convolution": ("auto", "direct", "winograd"),
    "precision": ("float32", "bfloat16"),
    "remat": ("false", "true"),
    "strips": (None, "3"),
    "deterministic": ("true", "false"),
    "output": (None, "out.png", "out.jpg", "out.webp", "out.tiff"),
    "quality": (None, "1", "100"),
    "checkpoint_seconds": (None, "0"),
    "tensorboard": ("false", "true"),
}

Flags = Mapping[str, str | None]

#: What two values may not be together, as the program says itself when it refuses them.
REFUSED = (
    lambda f: f.get("loss") == "ivanov2017" and f.get("style_loss") not in (None, "gram"),
    lambda f: f.get("loss") == "ivanov2017" and f.get("content_loss") == "self_similarity",
    lambda f: f.get("loss") == "ivanov2017" and f.get("total") == "product",
    lambda f: f.get("init", "content") == "content" and f.get("total") == "product",
    lambda f: f.get("strips") == "3" and f.get("total") == "product",
    lambda f: f.get("loss") == "ivanov2017" and f.get("scales") in ("2", "3"),
    lambda f: f.get("clip") == "true" and f.get("optimizer") == "scipy-lbfgs",
    lambda f: f.get("convolution") == "winograd" and f.get("precision") == "bfloat16",
    lambda f: f.get("bits") == "16" and f.get("output") in ("out.jpg", "out.webp"),
    lambda f: f.get("strips") == "3" and f.get("loss") == "ivanov2017",
    lambda f: f.get("strips") == "3" and f.get("style_loss") not in (None, "gram", "wasserstein"),
    lambda f: f.get("strips") == "3" and f.get("content_loss") == "self_similarity",
    lambda f: f.get("scales") in ("2", "3") and (f.get("steps") == "1" or f.get("evaluations")),
    lambda f: f.get("style_loss") == "mrf" and " " in f.get("style", "") and not f.get("content_mask"),
    lambda f: f.get("regions") and " " in f.get("style", ""),
    lambda f: f.get("regions") and (f.get("content_mask") or f.get("style_mask")),
    lambda f: (
        f.get("preserve_color") == "palette"
        and (f.get("regions") or f.get("content_mask") or f.get("style_mask"))
    ),
)


def valid(flags: Flags) -> bool:
    return not any(refused(flags) for refused in REFUSED)


def pairs(flags: Flags) -> set[tuple]:
    """The pairs of values that a set has."""
    return set(itertools.combinations(sorted(flags.items(), key=lambda item: item[0]), 2))


def all_pairs() -> set[tuple]:
    """The pairs of values that valid sets can have."""
    found = set()
    for one, other in itertools.combinations(sorted(FLAGS), 2):
        for values in itertools.product(FLAGS[one], FLAGS[other]):
            pair = dict(zip((one, other), values, strict=True))
            if valid(pair):
                found |= pairs(pair)
    return found


def covering(rng: random.Random) -> Iterator[dict[str, str | None]]:
    """Valid sets that have all pairs, each made greedily around a pair that is still missing."""
    missing = all_pairs()
    while missing:
        chosen = dict(min(rng.sample(sorted(missing, key=str), min(20, len(missing))), key=str))
        for name in rng.sample(sorted(FLAGS), len(FLAGS)):
            if name in chosen:
                continue
            fits = [value for value in FLAGS[name] if valid(chosen | {name: value})]
            new = {
                value: sum(tuple(sorted(((name, value), item))) in missing for item in chosen.items())
                for value in rng.sample(fits, len(fits))
            }
            chosen[name] = max(new, key=new.__getitem__)
        missing -= pairs(chosen)
        yield chosen


def arguments(flags: Flags, folder: pathlib.Path) -> list[str]:
    """A command line; each style has its masks."""
    found = ["--content_layer=block2_conv1"]
    styles = len(flags["style"].split())
    for name, text in flags.items():
        if text is not None:
            times = styles if name in ("content_mask", "style_mask") else 1
            found += [f"--{name}={value.replace('@/', f'{folder}/')}" for value in text.split()] * times
    return found


def write_pictures(folder: pathlib.Path) -> None:
    """A photo in two formats and in grey, two style pictures, and two masks."""
    rng = np.random.default_rng(0)
    for name, mode, size in (
        *(("photo.png", "RGB", (60, 44)), ("photo.jpg", "RGB", (60, 44)), ("grey.png", "L", (44, 60))),
        *(("style.png", "RGB", (70, 50)), ("other.png", "RGB", (40, 40))),
    ):
        noise = rng.integers(0, 256, (8, 8, 3)[: 2 + (mode == "RGB")], np.uint8)
        Image.fromarray(noise, mode).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    mask = np.zeros((40, 40), np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(folder / "left.png")
    Image.fromarray(mask.T).save(folder / "top.png")


# --- promises -----------------------------------------------------------------------------------------------------


def broken(flags: Flags, folder: pathlib.Path, given: Sequence[str]) -> str | None:
    """The first promise that a run with these flags breaks, if there is one."""
    run, again = folder / "run", folder / "again"
    done = command("stylize", [*given, f"--workdir={run}"], folder, LIMIT)
    if done.status or "Traceback" in done.errors:
        return f"status {done.status}: {done.errors}"
    made = results(run)
    manifest = json.loads((run / "manifest.json").read_text())
    rows = np.genfromtxt(run / "metrics.csv", delimiter=",", names=True, ndmin=1)
    short = manifest["status"] == "diverged" or flags["evaluations"]
    if len(rows) != int(flags["steps"]) + 1 and not short:
        return f"{len(rows)} rows of {flags['steps']} steps"
    if leftovers(run):
        return f"left {leftovers(run)}"
    if flags["output"] and not (folder / flags["output"]).is_file():
        return f"no {flags['output']}"
    if (run / "animation.webp").is_file() != (flags["save_every"] != "0"):
        return "animation.webp"
    # Compiled anew: what other sets left in the folder of programs is not to be taken for its own.
    given_back = f"--flagfile={run / 'run.flags'}", "--compilation_cache=", f"--workdir={again}"
    done = command("stylize", given_back, folder, LIMIT)
    if done.status or results(again) != made:
        return f"another result from run.flags: status {done.status}: {done.errors}"
    done = command("stylize", [*given, f"--workdir={run}"], folder, LIMIT)
    if done.status or results(run) != made:
        return f"repeated: status {done.status}: {done.errors}"
    done = command("verify", [f"--workdir={run}"], folder, LIMIT)
    if done.status:
        return f"verify: status {done.status}: {done.errors}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    rng = random.Random(parsed.seed)
    drawn = itertools.chain.from_iterable(covering(rng) for _ in itertools.count())
    known = narrow.network()
    weights.load = lambda name: weights.Weights(name, "vgg16", known, "0" * 64)
    faults, met = 0, set()
    statuses = Counter()
    with tempfile.TemporaryDirectory() as name:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{name}/cache")
        pictures = pathlib.Path(name)
        write_pictures(pictures)
        for number, flags in enumerate(itertools.islice(drawn, parsed.sets)):
            folder = pictures / f"{number}"
            folder.mkdir()
            met |= pairs(flags)
            given = arguments(flags, pictures)
            if found := broken(flags, folder, given):
                faults += 1
                print(f"{' '.join(given)}: {found}", flush=True)
            else:
                statuses[json.loads((folder / "run" / "manifest.json").read_text())["status"]] += 1
    total = len(all_pairs())
    print(json.dumps({"faults": faults, "pairs": len(met & all_pairs()), "of": total} | dict(statuses)))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
