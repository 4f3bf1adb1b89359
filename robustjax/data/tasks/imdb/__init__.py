"""IMDB: is a film review positive?"""

from robustjax.data.tasks.facts import INSERTED, TaskFacts

FACTS = TaskFacts(
    name="imdb",
    summary="is a film review negative or positive?",
    class_names=(" NEGATIVE", " POSITIVE"),
    chunk_kinds=INSERTED,
    instructions=(
        "Read a film review and say whether its author liked the film. Answer POSITIVE or "
        "NEGATIVE.\n\n"
    ),
    sizes={"train": "25,000", "validation": "25,000"},
    licence="none stated; for research (Maas et al. 2011)",
    homepage="https://ai.stanford.edu/~amaas/data/sentiment/",
)
