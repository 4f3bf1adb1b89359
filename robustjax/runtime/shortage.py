"""Telling a device that has too little memory from other errors of a program."""

import re

_SHORTAGE = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory")
_BYTES = re.compile(r"allocat\w* (\d+) ?bytes")


def memory_shortage(error: BaseException | None) -> str | None:
    """What helps, if an error comes from a device that has too little memory; else None.

    Looks at what raised it as well. Nothing that was written before is lost. JAX's own error is a
    `RuntimeError`, told by its text: where JAX is not installed there are other errors to tell.
    """
    while error is not None:
        if isinstance(error, MemoryError | RuntimeError):
            text = str(error)
            if isinstance(error, MemoryError) or _SHORTAGE.search(text):
                found = _BYTES.search(text)
                wanted = f" ({int(found[1]) / 1e9:.1f} GB were asked for at once)" if found else ""
                return (
                    f"out of memory{wanted}: lower search.batch_size or candidate_chunk of an "
                    "attack (`robustjax plan --local` finds what fits), train.microbatch_size of a "
                    "training; then the same command goes on"
                )
        error = error.__cause__ or error.__context__
    return None
