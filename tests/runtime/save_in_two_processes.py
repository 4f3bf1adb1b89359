"""One of two processes that save and restore together; run by test_checkpoint_processes.py.

python save_in_two_processes.py FOLDER PORT INDEX
"""

import os
import sys

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

SHAPE = (8, 1000)


def values_of(step: int) -> np.ndarray:
    """What is saved as a step."""
    return np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE) + 0.5 * step


def main(folder: str, port: str, index: int) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
    from robustjax.runtime.checkpoint import Checkpoints, load_params, save_params
    from robustjax.runtime.mesh import MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices())
    across = jax.NamedSharding(mesh, P("data", "fsdp"))
    add = jax.jit(lambda x: x + 0.5, donate_argnums=0, out_shardings=across)

    def spread(values: np.ndarray, sharding: jax.NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(values.shape, sharding, lambda at: values[at])

    weights = spread(values_of(0), across)
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in range(5):
            checkpoints.save(step, {"weights": weights}, {"step": step})
            weights = add(weights)  # while the step is written
        assert checkpoints.latest_step() == 4
    other = jax.NamedSharding(mesh, P("fsdp"))
    like = {"weights": jax.ShapeDtypeStruct(SHAPE, np.float32, sharding=other)}
    step, arrays, metadata = checkpoints.restore(like)
    assert (step, metadata) == (4, {"step": 4})
    save_params(os.path.join(folder, "model"), arrays, {})
    arrays, _ = load_params(os.path.join(folder, "model"), like)
    for shard in arrays["weights"].addressable_shards:
        np.testing.assert_array_equal(shard.data, values_of(4)[shard.index])
    print("same")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
