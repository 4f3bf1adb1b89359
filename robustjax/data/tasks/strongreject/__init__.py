"""StrongREJECT: prompts that a model should refuse; only its owners' file has them."""

from robustjax.data.tasks.facts import INSERTED, TaskFacts

FACTS = TaskFacts(
    name="strongreject",
    summary="forbidden prompts: does a language model begin to comply?",
    class_names=(),
    chunk_kinds=INSERTED,
    instructions="",
    sizes={"validation": "313"},
    licence="MIT; prompts from other work under their own licences",
    homepage="https://github.com/alexandrasouly/strongreject",
)
