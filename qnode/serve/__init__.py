"""A front end: delivers keys from the store of a node on another machine, without a link."""
