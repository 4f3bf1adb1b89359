"""One of two processes with two devices each; run by test_two_processes.py, which sets the rest.

python one_of_two.py MODE
"""

import sys
import time

import numpy as np

from robustjax.errors import UserError
from robustjax.runtime import distributed
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from robustjax.runtime.rows import Heard, Rows, anywhere, fetch, put

RULES = AxisRules()
WHOLE = np.arange(24, dtype=np.float32).reshape(8, 3)


def check_rows(sizes: tuple[int, int, int], size: int) -> list[int]:
    """Everything there is to do with rows; returns those that are this process's own."""
    import jax

    rows = Rows(make_mesh(MeshConfig(*sizes)), RULES, size)
    values = WHOLE[:size]
    mine = rows.own(values)
    placed = rows.put(mine)
    np.testing.assert_array_equal(rows.fetch(placed), mine)
    doubled = jax.jit(lambda x: 2 * x)(placed)
    np.testing.assert_array_equal(rows.fetch(doubled), 2 * mine)
    np.testing.assert_array_equal(rows.gather(doubled), 2 * values)
    np.testing.assert_array_equal(rows.gather(mine), values)
    large = rows.own(np.arange(size) + 2**40)
    np.testing.assert_array_equal(rows.gather(large), np.arange(size) + 2**40)
    across = rows.put(mine.T, axis=1)
    np.testing.assert_array_equal(fetch(across), values.T)
    np.testing.assert_array_equal(rows.gather(mine.T, axis=1), values.T)
    # What the compiler laid out otherwise is brought to where its rows are.
    moved = put(values.T.copy().T, jax.NamedSharding(placed.sharding.mesh, jax.P(None, None)))
    np.testing.assert_array_equal(rows.fetch(moved), mine)
    spread = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(placed.sharding.mesh, jax.P()))
    np.testing.assert_array_equal(rows.fetch(spread(placed)), mine)
    return rows.mine.tolist()


def agree() -> None:
    """Rows, flags and values; the primary one prints."""
    index = distributed.index()
    found = {
        "split": check_rows((4, 1, 1), 8),
        "unsplit": check_rows((1, 1, 4), 8),
        "odd": check_rows((2, 2, 1), 7),
        "halves": check_rows((2, 1, 2), 6),
    }
    told = distributed.everyones(found, "rows")
    assert anywhere(index == 1, False).tolist() == [True, False]
    heard = Heard()
    calls = [heard(index == 1 and number == 0).tolist() for number in range(3)]
    assert calls == [[False], [True], [False]]
    large = distributed.from_primary(lambda: np.arange(400_000) * (7 + index), "an array")
    np.testing.assert_array_equal(large, np.arange(400_000) * 7)
    sent = distributed.from_primary(
        lambda: {index}, "a set", plain=lambda made: [*made], back=lambda said: {*said}
    )
    assert sent == {0}

    def refuse() -> None:
        raise UserError(f"refused by {index}")

    try:
        distributed.from_primary(refuse, "a refusal")
    except UserError as error:
        assert str(error) == "refused by 0"
    distributed.barrier("all said")
    if distributed.is_primary():
        print(told)


def main(mode: str) -> None:
    distributed.start()
    if mode == "agree":
        agree()
        distributed.end(0)
    elif distributed.index():
        time.sleep(60)  # it lives, but does not come
    else:
        distributed.barrier("the middle")


if __name__ == "__main__":
    main(sys.argv[1])
