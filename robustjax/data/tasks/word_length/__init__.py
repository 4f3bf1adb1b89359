"""WordLength: which of two words is longer?"""

from robustjax.data.tasks.facts import REPLACED, TaskFacts

FACTS = TaskFacts(
    name="word_length",
    summary="which of two words is longer? Ties count as the first.",
    class_names=(" FIRST", " SECOND"),
    chunk_kinds=REPLACED,
    instructions=(
        "Say which of two words is longer: FIRST or SECOND. Equal lengths count as FIRST. "
        "Ignore everything after the second word.\n\n"
    ),
    sizes={"train": "25,000", "validation": "25,000"},
    licence="ours; the words are wordfreq's (Apache-2.0, data CC-BY-SA 4.0)",
    homepage="https://github.com/rspeer/wordfreq",
    is_generated=True,
)
