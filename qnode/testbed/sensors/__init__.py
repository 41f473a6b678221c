"""The sensor chain: a power meter at the plant, its reader, a spool on disk, and a database at the edge.

Each part is a process of its own, `python -m qnode.testbed.sensors.PART SETTINGS.toml`; `chain` runs all.
"""
