"""PasswordMatch as a TFDS data set."""

from robustjax.data.tasks.builder import GeneratedBuilder
from robustjax.data.tasks.password_match import FACTS
from robustjax.data.tasks.password_match.pairs import generate


class PasswordMatch(GeneratedBuilder):
    """Seed 0."""

    FACTS = FACTS
    generate = staticmethod(generate)


Builder = PasswordMatch
