"""jaxstyle: neural style transfer, and a laboratory for its optimizers.

    import jaxstyle
    content, style = (jaxstyle.read_picture(name, 400) for name in ("me.jpg", "painting.jpg"))
    image, metrics = jaxstyle.stylize(content, style, steps=100)

`EXPORTS` is the library's face; what is not there is free to move. A name is imported when it is first used, so that
`import jaxstyle` takes no time. Images are float32 `[height, width, 3]`, RGB in [0, 255].
"""

import importlib
from typing import Any

#: By name, the module that has it and what it is called there.
EXPORTS = {
    # pictures: files to arrays and back
    "read_picture": ("images.pictures", "read"),
    "write_picture": ("images.pictures", "write"),
    # the network
    "load_weights": ("network.weights", "load"),
    "prepare_network": ("network.vgg", "prepare"),
    "features": ("network.vgg", "features"),
    # the objective: its form, layers and weights, what it is posed of, and its value with its gradient
    "Form": ("losses.objective", "Form"),
    "FORMS": ("losses.objective", "FORMS"),
    "StyleLoss": ("losses.base", "StyleLoss"),
    "STYLE_LOSSES": ("losses.style", "STYLE_LOSSES"),
    "Recipe": ("losses.recipes", "Recipe"),
    "RECIPES": ("losses.recipes", "RECIPES"),
    "weighting": ("losses.recipes", "weighting"),
    "Style": ("losses.objective", "Style"),
    "pose": ("notebook", "pose"),
    "evaluate": ("losses.objective", "evaluate"),
    # optimizers
    "parse_optimizer": ("optimizers.catalogue", "parse"),
    "build_optimizer": ("optimizers.catalogue", "build"),
    "Iterate": ("optimizers.base", "Iterate"),
    "Visit": ("optimizers.base", "Visit"),
    "from_optax": ("optimizers.first_order", "from_optax"),
    # the training step, runs of it, and how good a picture is
    "program": ("training", "program"),
    "run": ("notebook", "run"),
    "stylize": ("notebook", "stylize"),
    "lpips": ("notebook", "lpips"),
    "lpips_heads": ("network.weights", "lpips_heads"),
    "style_distances": ("notebook", "style_distances"),
    "UserError": ("errors", "UserError"),
}

__all__ = list(EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = EXPORTS[name]
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *EXPORTS])
