"""One photo, one or more style pictures, one optimizer -> one picture.

python -m experiments.stylize --content=me.jpg --style=painting.jpg --size=512 --workdir=runs/me
"""

import pathlib

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import launch, task
from jaxstyle import optimizers, pictures, run

_OPTIMIZER = flags.DEFINE_string(
    "optimizer", "lbfgs", "NAME or NAME:key=value,key=value, as in adam:learning_rate=10."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Write the picture to this file too: .png, .jpg, .webp or .tiff."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/stylize", "Where the run writes.")

flags.adopt_module_key_flags(launch)


def main() -> None:
    directory = pathlib.Path(_WORKDIR.value)
    picture = directory / "image.png"
    spec = optimizers.parse(_OPTIMIZER.value, launch.LOSS.value)
    if _OUTPUT.value:
        pictures.check_writable(_OUTPUT.value)
    posed = task.read()
    record = launch.recorded_flags()
    with run.claimed(directory):
        state = run.begin(directory, record, launch.OVERWRITE.value)
        if state in ("finished", "diverged"):
            print(f"{state} before; --overwrite runs it again")
            finish(picture, record)
            return
        print("compiling …", flush=True)
        with tqdm(total=launch.STEPS.value, unit="step", disable=None) as bar:

            def report(row) -> None:
                bar.set_postfix_str(f"loss {row[3]:.6g}", refresh=False)
                bar.update(int(row[0]) - bar.n)

            result = task.run_arm(
                posed,
                spec,
                directory,
                record,
                lambda s: bar.write(f"compiled in {s:.1f} s"),
                report,
            )
    if result.status == "diverged" and not np.isfinite(result.rows[-1, 3]):
        print(
            "diverged at the start: its loss is not finite. What usually helps are smaller --content_weight, "
            "--style_weight and --tv_weight."
        )
    elif result.status == "diverged":
        print(
            f"diverged at step {len(result.rows)}: the loss was no longer finite. What usually helps is a "
            "smaller learning rate, or lbfgs, which has none."
        )
    else:
        print(f"loss {result.rows[0, 3]:.6g} -> {result.rows[-1, 3]:.6g} in {result.rows[-1, 2]:.1f} s")
    finish(picture, record)


def finish(picture: pathlib.Path, record: str) -> None:
    """Writes the copy that --output asks for, and says where the picture is."""
    if _OUTPUT.value:
        pictures.write(_OUTPUT.value, pictures.read(picture), record)
    print(f"picture: {_OUTPUT.value or picture}")


if __name__ == "__main__":
    launch.run(main)
