"""Pairs of a photo and a style picture on which methods are tuned and judged."""

import dataclasses
import json
import os
import pathlib

from jaxstyle.errors import UserError

from .settings import Settings

#: The variable that names the folder of pairs.json.
PICTURES = "JAXSTYLE_PICTURES"

#: Pairs where the variable is not set.
SAMPLES = {
    "tuning": [["sample:cat", "sample:night"], ["sample:portrait", "sample:facets"]],
    "test": [["sample:portrait", "sample:night"], ["sample:cat", "sample:facets"]],
}


def read_pairs(kind: str, count: int | None, base: Settings) -> dict[str, Settings]:
    """Pairs for `tuning` or `test` by name, the first `count` of them.

    Raises:
      UserError: the folder has no pairs.json of this form, or a picture is not there.
    """
    folder = os.environ.get(PICTURES)
    if not folder:
        pairs = SAMPLES[kind]
    else:
        path = pathlib.Path(folder, "pairs.json")
        try:
            pairs = [(str(photo), str(style)) for photo, style in json.loads(path.read_text("utf-8"))[kind]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{PICTURES}: {path}: no {{"{kind}": [[photo, style], …]}} there: {error}'
            ) from error
    folders = [pathlib.Path(each) for each in (folder, os.environ.get("JAXSTYLE_IVANOV2017")) if each]

    def find(name: str) -> str:
        if name.startswith("sample:"):
            return name
        for each in folders:
            if (each / name).is_file():
                return str(each / name)
        raise UserError(f"{PICTURES}: {name} of pairs.json is in none of {', '.join(map(str, folders))}")

    return {
        f"{stem(photo)} + {stem(style)}": dataclasses.replace(base, content=find(photo), style=(find(style),))
        for photo, style in pairs[:count]
    }


def stem(name: str) -> str:
    """A picture's name in a table."""
    return pathlib.PurePath(name.removeprefix("sample:")).stem.replace("_", " ")
