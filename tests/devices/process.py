"""One of several processes that train together, as `test_devices.py` starts them.

`python -m tests.devices.process INDEX COUNT PORT PATH`
"""

import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .problem import TX, arrays, learnt, problem, train, train_step


def main(index, count, port, path):
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            num_processes=count,
            process_id=index,
            initialization_timeout=120,
        )
    print(len(jax.devices()), "devices,", len(jax.local_devices()), "of them local", flush=True)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params, batch = jax.tree.map(np.asarray, problem())

    def own_part(leaf):
        """Each process reads its own part of the batch alone."""
        part = np.split(leaf, count)[index]
        return jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), part)

    batch = jax.tree.map(own_part, batch)
    results = {}
    for name, two_pass in (("famo", False), ("famo", True), ("nash_mtl", False)):
        tx = TX[name]
        start = jax.jit(
            lambda params, tx=tx: (params, tx.init(params)),
            out_shardings=NamedSharding(mesh, P()),
        )(params)
        step = train_step(tx, two_pass=two_pass)
        (params_, state), losses, _ = train(step, *start, batch)
        for number, leaf in enumerate([*arrays((params_, learnt(state))), losses]):
            results[f"{name} two_pass={two_pass} {number}"] = leaf
    np.savez(path, **results)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
