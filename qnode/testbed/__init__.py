"""Two sites, the operator's line between them, tunnels and a sensor chain on one machine, from real parts."""
