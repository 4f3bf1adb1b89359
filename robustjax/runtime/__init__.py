"""What a run stands on: devices, processes, checkpoints, logs and stages.

Import the modules themselves; this package pulls in nothing, so that the parts which never need JAX
(`runlog`, `stages`) load without it.
"""
