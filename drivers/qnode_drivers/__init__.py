"""Drivers that ship with qnode, one module per device."""
