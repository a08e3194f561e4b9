"""Pairs of a photo and a style picture: the article's, and those on which methods are tuned and judged."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

from jaxstyle.errors import UserError

from .settings import Settings

#: The article's pairs: photo and style among the samples, and in the folder of the study's own pictures.
ARTICLE = {
    "A": (("sample:portrait", "sample:facets"), ("slav.jpg", "picasso.jpg")),
    "B": (("sample:cat", "sample:night"), ("dog.jpg", "starry_night.jpg")),
    "B2": (("sample:portrait", "sample:night"), ("friends.jpg", "scream.jpg")),
}

#: The variable that names the folder of the study's own pictures.
STUDY = "JAXSTYLE_IVANOV2017"

#: The variable that names the folder of pairs.json.
PICTURES = "JAXSTYLE_PICTURES"

#: Pairs where the variable is not set.
SAMPLES = {
    "tuning": [["sample:cat", "sample:night"], ["sample:portrait", "sample:facets"]],
    "test": [["sample:portrait", "sample:night"], ["sample:cat", "sample:facets"]],
}


def of_article(names: Sequence[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, photo and style pictures of some of `ARTICLE`."""
    folder, found = os.environ.get(STUDY), []
    for name in dict.fromkeys(names):
        samples, study = ARTICLE[name]
        content, style = (os.path.join(folder, file) for file in study) if folder else samples
        found.append((name, content, (style,)))
    return found


def read_pairs(kind: str, count: int | None, base: Settings) -> dict[str, Settings]:
    """Pairs for `tuning` or `test` by name, the first `count` of them.

    Raises:
      UserError: the folder has no pairs.json of this form, with a pair or more, a picture is not there, or two pairs
        have one name.
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
    folders = [pathlib.Path(each) for each in (folder, os.environ.get(STUDY)) if each]

    def find(name: str) -> str:
        if name.startswith("sample:"):
            return name
        for each in folders:
            if (each / name).is_file():
                return str(each / name)
        raise UserError(f"{PICTURES}: {name} of pairs.json is in none of {', '.join(map(str, folders))}")

    if not pairs:
        raise UserError(f"{PICTURES}: pairs.json has no pair under {kind!r}; one or more are needed")
    found: dict[str, Settings] = {}
    for photo, style in pairs[:count]:
        name = f"{stem(photo)} + {stem(style)}"
        if name in found:
            raise UserError(
                f"{PICTURES}: two pairs of {kind!r} are called {name}; their pictures need other names"
            )
        found[name] = dataclasses.replace(base, content=find(photo), style=(find(style),))
    return found


def stem(name: str) -> str:
    """A picture's name in a table."""
    return pathlib.PurePath(name.removeprefix("sample:")).stem.replace("_", " ")
