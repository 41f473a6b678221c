"""The simulated world: two nodes in one process on a virtual clock, every fault drawn from one seed."""
