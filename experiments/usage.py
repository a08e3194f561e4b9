"""What --helpshort says: the flags of a command, by what people want."""

from collections.abc import Iterable

from absl import flags

#: Flags by what people want, the ten that matter first before all. What is not here is a command's own.
GROUPS = {
    "What matters first": (
        *("content", "style", "size", "steps", "style_weight", "preserve_color", "style_scale", "init"),
        *("optimizer", "workdir"),
    ),
    "Of this command": (),
    "Pictures": (
        *("resize", "content_mask", "style_mask", "regions", "content_weight_mask", "bits", "quality"),
        *("save_every", "seed"),
    ),
    "Style": (
        *("style_layer", "style_loss", "content_layer", "content_loss", "content_weight", "tv_weight"),
        *("total", "loss", "weights", "pooling", "padding"),
    ),
    "Optimizer": ("parametrization", "scales", "evaluations", "keep", "clip"),
    "Where": ("output", "overwrite", "tensorboard", "preview", "compilation_cache"),
    "How": ("dry_run", "checkpoint_seconds", "remat", "strips", "convolution", "precision", "deterministic"),
    "On what": ("devices", "coordinator", "processes", "process"),
    "Many runs": ("launcher", "jobs", "sbatch"),
}
_GROUP = {name: group for group, names in GROUPS.items() for name in names}


def text(about: str, known: Iterable[flags.Flag]) -> str:
    """The help of a command.

    Args:
      about: what it says of itself.
      known: its flags.
    """
    found = {flag.name: flag for flag in known}
    parts = [about.strip()]
    for group, names in GROUPS.items():
        own = [*names, *sorted(name for name in found if _GROUP.get(name, "Of this command") == group)]
        if lines := [_entry(found[name]) for name in dict.fromkeys(own) if name in found]:
            parts.append("\n".join([f"{group}:", *lines]))
    return "\n\n".join([*parts, "--helpfull lists those of all libraries too.\n"])


def _entry(flag: flags.Flag) -> str:
    """`--name: help (default: value; range)`."""
    said = flag.help.replace(";\n    repeat this option to specify a list of values", "")
    default = " ".join(map(str, flag.default)) if isinstance(flag.default, list) else flag.default_as_str
    facts = ["default: " + default.strip("'")] if default else []
    facts += [flag.parser.syntactic_help] if flag.parser.syntactic_help else []
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    line = f"{name}: {said}" + (f" ({'; '.join(facts)})" if facts else "")
    return flags.text_wrap(line, indent="      ", firstline_indent="  ")
