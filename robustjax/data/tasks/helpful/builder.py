"""Helpful as a TFDS data set."""

from robustjax.data.tasks.helpful import FACTS
from robustjax.data.tasks.hh_rlhf import PreferenceBuilder, sources


class Helpful(PreferenceBuilder):
    """The tranche of base models."""

    FACTS = FACTS
    SOURCES = sources("helpful-base")


Builder = Helpful
