"""Harmless as a TFDS data set."""

from robustjax.data.tasks.harmless import FACTS
from robustjax.data.tasks.hh_rlhf import PreferenceBuilder, sources


class Harmless(PreferenceBuilder):
    """The tranche of base models."""

    FACTS = FACTS
    SOURCES = sources("harmless-base")


Builder = Harmless
