"""--preview: what is sent to a terminal, by what it answers when it is asked what it shows."""

import base64
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import narrow
import numpy as np
import pytest
from PIL import Image

LAYERS = "--content_layer=block1_conv1", "--style_layer=block1_conv1"
SMALL = (*LAYERS, "--size=32", "--steps=3", "--optimizer=adam")
LINES, COLUMNS, CELL = 24, 80, (10, 20)

#: What a terminal answers to questions, which are regular expressions.
SIXEL = {rb"\x1b\[c": b"\x1b[?62;4;22c"}
KITTY = {rb"\x1b_Gi=(\d+)[^;]*a=q[^;]*;AAAA\x1b\\": b"\x1b_Gi=\\1;OK\x1b\\\\", rb"\x1b\[c": b"\x1b[?62c"}
PLAIN = {rb"\x1b\[c": b"\x1b[?62c"}

#: Shows an orange picture, twice as wide as high, two times in one place and a green one below.
SHOWN = """
import numpy as np
from jaxstyle.lab.preview import Preview
preview = Preview()
orange, green = (np.full((40, 80, 3), color, np.float32) for color in ([255, 102, 0], [0, 153, 51]))
preview.show(orange)
preview.show(orange)
preview.leave()
print("below")
preview.show(green)
"""


def in_terminal(arguments, answers, lines=LINES, **environment):
    """Exit status of a process in a terminal, and all that it sent there."""
    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", lines, COLUMNS, COLUMNS * CELL[0], lines * CELL[1])
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    given = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": str(narrow.ROOT)} | environment
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=narrow.ROOT,
        env={name: text for name, text in os.environ.items() if name != "NO_COLOR"} | given,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    timer = threading.Timer(240, process.kill)
    timer.start()
    sent, asked = b"", 0
    while True:
        try:
            data = os.read(ours, 2**16)
        except OSError:  # it has hung up
            break
        if not data:
            break
        sent += data
        questions = ((re.search(question, sent[asked:]), answer) for question, answer in answers.items())
        found = sorted(((f, a) for f, a in questions if f), key=lambda each: each[0].start())
        for question, answer in found:
            os.write(ours, question.expand(answer))
        asked += found[-1][0].end() if found else 0
    timer.cancel()
    os.close(ours)
    return process.wait(), sent.decode()


def kitty_pictures(sent):
    """The pictures that kitty is sent: of each its pieces of PNG in base64, `m` telling whether more come."""
    found, pieces = [], ""
    for keys, data in re.findall(r"\x1b_G([^;\x1b]*m=[01][^;\x1b]*);([^\x1b]*)\x1b\\", sent):
        pieces += data
        if "m=0" in keys:
            found.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(pieces))).convert("RGB")))
            pieces = ""
    return found


def moves_up(sent):
    return [int(lines) for lines in re.findall(r"\x1b\[(\d+)A", sent)]


def test_kitty_is_sent_each_picture_as_large_as_fits_over_the_one_before(tmp_path):
    status, sent = in_terminal(["-c", SHOWN], KITTY, NO_COLOR="1")
    assert status == 0, sent
    first, second, third = kitty_pictures(sent)
    assert first.shape == (400, 800, 3)  # all columns; the lines that are left are for what is said
    assert (first == [255, 102, 0]).all()
    assert (second == first).all()
    assert (third == [0, 153, 51]).all()
    assert moves_up(sent) == [20]  # once: after `leave` it is drawn where the cursor is
    above, _, below = sent.partition("below")
    assert above.count("\U0010eeee") == 2 * 20 * 80
    assert below.count("\U0010eeee") == 20 * 80
    assert "\x1b[38;2;" in below  # which picture a place shows is in its colour: NO_COLOR cannot be meant


def test_a_terminal_with_sixel_is_sent_those():
    status, sent = in_terminal(["-c", SHOWN], SIXEL)
    assert status == 0, sent
    pictures = re.findall(r"\x1bP[\d;]*q([^\x1b]*)\x1b\\", sent)
    assert len(pictures) == 3
    assert all(picture.startswith('"1;1;800;400') for picture in pictures)
    assert re.search(r"#\d+;2;100;40;0(?!\d)", pictures[0])
    assert re.search(r"#\d+;2;0;60;20(?!\d)", pictures[2])
    # Each is drawn from its first line, and the second begins where the first did.
    assert moves_up(sent) == [20, 20, 20, 20]


def test_another_terminal_is_sent_half_blocks():
    status, sent = in_terminal(["-c", SHOWN], PLAIN, NO_COLOR="1")
    assert status == 0, sent
    assert sent.count("▀") == 3 * 20 * 80
    assert "\x1b[38;2;255;102;0;48;2;255;102;0m▀" in sent


@pytest.mark.parametrize(
    ("code", "environment", "said"),
    [
        (SHOWN, {"lines": 0}, "--preview: the terminal tells no size; stty rows 24 columns 80 gives it one"),
        (SHOWN, {"TERM": "dumb"}, "--preview: a terminal of TERM=dumb shows neither pictures nor colours"),
        (
            f"import sys; sys.modules['textual_image'] = None{SHOWN}",
            {},
            "--preview: needs textual-image; pip install 'jaxstyle[preview]' brings it",
        ),
    ],
)
def test_a_terminal_that_shows_nothing_is_refused(code, environment, said):
    status, sent = in_terminal(["-c", code], PLAIN, **environment)
    assert status == 1
    assert said in sent
    assert "\x1b" not in sent  # nor is it asked what it shows


def test_a_pipe_is_no_terminal_and_has_nothing_but_what_is_said(tmp_path):
    told = narrow.refused("experiments.stylize", *SMALL, "--preview", f"--workdir={tmp_path / 'run'}")
    assert told == (
        "stylize: --preview: draws in a terminal, and input or output is none; --save_every keeps pictures on the "
        "way\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_run_draws_its_picture_beside_its_bar_and_is_the_run_it_was(tmp_path):
    flags = (*SMALL, f"--workdir={tmp_path / 'seen'}", "--preview")
    command = narrow.command("experiments.stylize", *flags)["args"][1:]
    status, sent = in_terminal(command, KITTY)
    assert status == 0, sent
    last = kitty_pictures(sent)[-1]
    result = Image.open(tmp_path / "seen" / "image.png")
    np.testing.assert_array_equal(last, result.resize(last.shape[1::-1]))
    assert "3/3" in sent
    assert "preview" not in (tmp_path / "seen" / "run.flags").read_text()
    unseen = narrow.run("experiments.stylize", *SMALL, f"--workdir={tmp_path / 'unseen'}")
    assert unseen.returncode == 0, unseen.stderr
    assert (tmp_path / "unseen" / "image.png").read_bytes() == (tmp_path / "seen" / "image.png").read_bytes()
