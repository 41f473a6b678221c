"""Emulators of devices: they speak a device's bytes from the other end and share no code with its driver."""
