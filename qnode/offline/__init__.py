"""Both sites of a link in one process, with given tags and symbols: no network, no store."""
