"""Both sites of a link in one process, over tags and symbols that are at hand: no network, no store."""
