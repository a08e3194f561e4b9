"""The picture in the terminal while it is made. Effects only.

Needs textual-image (extra `preview`), which is imported when it is first used. It asks the terminal what it shows:
sixel (iTerm2, WezTerm, foot, Windows Terminal, xterm), kitty's protocol, or neither, where it draws in coloured half
blocks.
"""

import importlib.util
import logging
import os
import sys

import numpy as np

from jaxstyle.errors import UserError
from jaxstyle.runs import processes

#: Lines of the terminal that a picture leaves to what is said around it.
REST = 3


class Preview:
    """A picture above the line of progress, each drawn over the one before.

    Raises:
      UserError: textual-image is not installed, or there is no terminal that could show a picture, or several are.
    """

    def __init__(self):
        if processes.several():
            raise UserError("--preview: draws in the terminal of one process; leave it out, or --processes")
        if importlib.util.find_spec("textual_image") is None:
            raise UserError("--preview: needs textual-image; pip install 'jaxstyle[preview]' brings it")
        if not all(stream and stream.isatty() for stream in (sys.__stdin__, sys.__stdout__)):
            raise UserError(
                "--preview: draws in a terminal, and input or output is none; --save_every keeps pictures on the way"
            )
        if 0 in os.get_terminal_size(sys.__stdout__.fileno()):
            raise UserError("--preview: the terminal tells no size; stty rows 24 columns 80 gives it one")
        # A terminal need not answer all that it is asked.
        logging.getLogger("textual_image").setLevel(logging.ERROR)
        from rich.console import Console

        # Who asks for a picture asks for its colours, whatever NO_COLOR says.
        self._console = Console(color_system="auto", no_color=False)
        if self._console.color_system is None:
            raise UserError(
                f"--preview: a terminal of TERM={os.environ.get('TERM', '')} shows neither pictures nor colours"
            )
        from textual_image.renderable import HalfcellImage, Image  # which asks the terminal

        if Image is not HalfcellImage:  # kitty's pictures are told by a colour
            self._console = Console(color_system="truecolor", no_color=False)
        self._image, self._lines = Image, 0

    def show(self, image: np.ndarray) -> None:
        """Draws an image [height, width, 3], in [0, 255] or beyond, as large as the terminal has room for."""
        from PIL import Image
        from rich.control import Control
        from rich.segment import Segments
        from tqdm import tqdm

        console, pixels = self._console, np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)
        options = console.options.update(height=max(1, console.height - REST))
        drawn = list(console.render(self._image(Image.fromarray(pixels), "auto", "auto"), options))
        with tqdm.external_write_mode():
            console.control(Control.move(0, -self._lines))
            console.print(Segments(drawn), end="")
        self._lines = sum(segment.text.count("\n") for segment in drawn if not segment.control)

    def leave(self) -> None:
        """Has the next picture be drawn below what is there, as something was said since."""
        self._lines = 0
