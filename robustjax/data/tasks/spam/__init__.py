"""Spam: is an e-mail of the Enron corpus spam?"""

from robustjax.data.tasks.facts import INSERTED, TaskFacts

FACTS = TaskFacts(
    name="spam",
    summary="is an e-mail ham or spam? (Enron)",
    class_names=(" HAM", " SPAM"),
    chunk_kinds=INSERTED,
    instructions="Read an e-mail and say whether it is spam. Answer SPAM, or HAM if it is not.\n\n",
    sizes={"train": "about 31,700", "validation": "about 2,000"},
    licence="none stated; Enron-Spam (Metsis et al. 2006)",
    homepage="https://huggingface.co/datasets/SetFit/enron_spam",
)
