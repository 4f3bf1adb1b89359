"""Words for what the records call by identifiers: sizes, attacks, tasks."""

from collections.abc import Sequence

from robustjax.analysis.stages import Victim
from robustjax.evaluation.records import UNDEFENDED

_NAMES = {
    "gcg": "GCG",
    "random_token": "RandomToken",
    "beast": "BEAST",
    "beam_search": "beam search",
    "gpt_neox": "GPT-NeoX",
    "pythia": "Pythia",
    "qwen2": "Qwen2",
    "qwen2.5": "Qwen2.5",
}


_OPTIONS = {
    "untargeted": "untargeted",
    "random_start": "random start",
    "stop_at_success": "stops at success",
    "keep_best": "keeps the best",
    "replacements": "several replacements",
    "momentum": "momentum",
    "probe": "probe sampling",
    "bf16": "ranked in bfloat16",
    "no_ramp": "every round as long",
}


def base_name(attack: str) -> str:
    """Label of an attack without its options and its position."""
    return attack.partition("@")[0].partition("+")[0]


def attack_parts(attack: str) -> tuple[str, str]:
    """Label of an attack without its position, and the position: `suffix`, `prefix`, `infix90`."""
    label, _, place = attack.partition("@")
    fraction = float(place) if place else 1.0
    words = {1.0: "suffix", 0.0: "prefix"}
    return label, words.get(fraction, f"infix{100 * fraction:g}")


def attack_name(attack: str) -> str:
    """Name of an attack: `GCG`, `GCG (momentum, keeps the best)`, `GCG at 0.9`.

    Options that change its algorithm stand behind it, and the position of a slot that is no suffix.
    """
    label, _, position = attack.partition("@")
    name, *options = label.split("+")
    words = ", ".join(_OPTIONS.get(option, option) for option in options)
    return (
        _NAMES.get(name, name)
        + (f" ({words})" if words else "")
        + (f" at {position}" if position else "")
    )


def attack_file_name(attack: str) -> str:
    """Label of an attack as a part of a file's name."""
    return attack.replace("+", "_with_").replace("@", "_at_")


def family_name(family: str) -> str:
    """Name of a model family."""
    return _NAMES.get(family, family)


def condition_name(trained_on: str) -> str:
    """Name of a defence: undefended, or trained on an attack."""
    return "undefended" if trained_on == UNDEFENDED else f"trained on {attack_name(trained_on)}"


def size_label(num_params: int, digits: int = 1) -> str:
    """Parameter count in few characters: 28k, 0.9M, 44.7M, 1.3B."""
    if num_params < 1000:
        return str(num_params)
    if num_params < 500_000:
        return f"{num_params / 1e3:.{digits - 1}f}k"
    if num_params < 1_000_000_000:
        return f"{num_params / 1e6:.{digits}f}M"
    return f"{num_params / 1e9:.{digits}f}B"


def size_labels(victims: Sequence[Victim]) -> dict[str, str]:
    """A label for each scaling point, no two alike, by point in order of size."""
    sizes = sorted({(victim.num_params, victim.point) for victim in victims})
    for digits in range(1, 5):
        labels = {point: size_label(count, digits) for count, point in sizes}
        if len(set(labels.values())) == len(labels):
            return labels
    return {point: f"{size_label(count)} ({point})" for count, point in sizes}
