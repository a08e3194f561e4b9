"""Makes the pictures of the studio's choices anew: all of them, or those whose names are given.

    python tests/thumbnails.py style_loss-rot style_loss-cross

Each is the sample portrait after the sample night with the one flag that its choice sets, as the page sets it.
"""

import pathlib
import subprocess
import sys
import tempfile

from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
SIDE = 160  # pixels


def flags() -> dict[str, list[str]]:
    """By the name of a picture, what its run is given; the base is given nothing."""
    from experiments import controls

    found = {
        choice.picture: [f"--{control.flag}={choice.value}"]
        for control in controls.CONTROLS
        for choice in control.choices
        if choice.picture
    }
    return found | {"base": []}


def make(name: str, given: list[str], folder: str) -> None:
    run = pathlib.Path(folder, name)
    command = [sys.executable, "-m", "experiments.stylize", "--size=192", "--steps=50", f"--workdir={run}"]
    subprocess.run([*command, *given], cwd=ROOT, check=True)
    with Image.open(run / "image.png") as image:
        small = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(ROOT / "jaxstyle" / "studio" / "page" / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    known = flags()
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or known:
            make(name, known[name], folder)
