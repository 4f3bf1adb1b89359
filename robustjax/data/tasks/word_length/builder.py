"""WordLength as a TFDS data set."""

from robustjax.data.tasks.builder import GeneratedBuilder
from robustjax.data.tasks.word_length import FACTS
from robustjax.data.tasks.word_length.pairs import generate


class WordLength(GeneratedBuilder):
    """Seed 0."""

    FACTS = FACTS
    generate = staticmethod(generate)


Builder = WordLength
