"""The style losses by name."""

from jaxstyle.losses import cross, gram, mrf, nearest, rot, sliced, wasserstein

STYLE_LOSSES = {
    "gram": gram.STYLE_LOSS,
    "wasserstein": wasserstein.STYLE_LOSS,
    "sliced": sliced.STYLE_LOSS,
    "mrf": mrf.STYLE_LOSS,
    "nearest": nearest.STYLE_LOSS,
    "split": nearest.SPLIT,
    "rot": rot.STYLE_LOSS,
    "cross": cross.STYLE_LOSS,
}

#: Those that take of all style pictures what is nearest at each step, whose shares then say nothing.
WITHOUT_SHARES = ("mrf",)
