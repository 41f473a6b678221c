"""The audit: a hash-chained record of who got which key when, and of what an operator changed."""
