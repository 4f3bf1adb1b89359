"""Helpful: in which of two conversations is the assistant more helpful?"""

from robustjax.data.tasks.facts import INSERTED, TaskFacts

FACTS = TaskFacts(
    name="helpful",
    summary="in which of two conversations is the assistant more helpful?",
    class_names=(" FIRST", " SECOND"),
    chunk_kinds=INSERTED,
    instructions=(
        "Read two conversations with an assistant and say in which one the assistant is more "
        "helpful. Answer FIRST or SECOND.\n\n"
    ),
    sizes={"train": "about 43,800", "validation": "about 2,350"},
    licence="MIT",
    homepage="https://huggingface.co/datasets/Anthropic/hh-rlhf",
)
