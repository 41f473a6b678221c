"""`qnode bench --against DIR`: this code beside another checkout, run in turn.

Each checkout runs in processes of its own, by the same Python and its packages. What can be seen from outside
is measured there: daemons by their control sockets, key delivery over TLS, processor time by the kernel's
count. The scripts in `inside` run with the code of a checkout and use what all versions since 0.1.0 have.
"""
