"""Both sites on one machine: two daemons, simulated hardware, two demonstration encryptors."""
