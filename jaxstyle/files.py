"""Files that appear whole or not at all."""

import contextlib
import csv
import io
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterable

#: What a killed process was writing, as a pattern of names.
DRAFTS = f".{'[0-9a-f]' * 32}.partial"


def remove(path: pathlib.Path) -> None:
    """Deletes a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Puts a file in the place of what was there, in one step: no reader sees half of it.

    Raises:
      OSError: the disk is full or fails; what was there stays.
    """
    draft = path.with_name(f".{uuid.uuid4().hex}.partial")  # of one length, however long the name is
    try:
        with open(draft, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            draft.unlink(missing_ok=True)
        raise


def write_csv(path: pathlib.Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Writes a table, as `write_atomically` does."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
