"""Newton's method on the barrier of `qnode.distill.keylength.search`, compiled."""

import numpy as np
from numpy.typing import NDArray

from qnode.kernels import inner_kernel, kernel

Array = NDArray[np.float64]
Places = NDArray[np.int64]


@kernel
def centre(
    v: Array,
    barrier: float,
    M: Array,
    m: Array,
    q: Array,
    a: Array,
    cone: Array,
    positive: Places,
    steps: int,
) -> None:
    """Move ``v`` (n unknowns) to the minimum of `_merit`, in at most ``steps`` of Newton's method.

    ``M`` (classes, n), ``m`` (classes) give the logarithms, ``q`` (n) and ``a`` (classes) what is proven,
    ``cone`` (rows, classes) the conditions, ``positive`` the places in ``v`` that stay above 0.
    """
    n, n_classes, n_rows = v.size, m.size, cone.shape[0]
    logs, growth = np.empty(n_classes), np.empty(n_classes)
    # By class and unknown: first derivatives of the logarithm and of stretch * growth, times stretch.
    rows, each = np.empty((n_classes, n)), np.empty((n_classes, n))
    pulled, curved = np.empty(n), np.empty(n_classes)
    hessian, gradient, step, moved = np.empty((n, n)), np.empty(n), np.empty(n), np.empty(n)
    value = _merit(v, barrier, M, m, q, a, cone, positive, logs, growth)
    for _ in range(steps):
        stretch = v[n - 1]
        _take_logs(v, M, m, logs)
        for j in range(n_classes):
            growth[j] = np.expm1(logs[j])
            for i in range(n):
                rows[j, i] = M[j, i]
            rows[j, n - 1] -= logs[j]
            for i in range(n):
                each[j, i] = (1.0 + growth[j]) * rows[j, i]
            each[j, n - 1] += growth[j]
            curved[j] = a[j] / barrier
        for i in range(n):
            gradient[i] = -q[i] / barrier
            for j in range(n_classes):
                gradient[i] += a[j] * (each[j, i] - M[j, i]) / barrier
            for k in range(n):
                hessian[i, k] = 0.0
        for r in range(n_rows):
            slack = 0.0
            for j in range(n_classes):
                slack -= stretch * cone[r, j] * growth[j]
            pulled[:] = 0.0
            for j in range(n_classes):
                if cone[r, j] != 0.0:
                    curved[j] += cone[r, j] / slack
                    for i in range(n):
                        pulled[i] += cone[r, j] / slack * each[j, i]
            for i in range(n):
                gradient[i] += pulled[i]
                for k in range(n):
                    hessian[i, k] += pulled[i] * pulled[k]
        for j in range(n_classes):
            curve = curved[j] * (1.0 + growth[j]) / stretch
            for i in range(n):
                if rows[j, i] != 0.0:
                    for k in range(n):
                        hessian[i, k] += curve * rows[j, i] * rows[j, k]
        for i in positive:
            gradient[i] -= 1.0 / v[i]
            hessian[i, i] += 1.0 / (v[i] * v[i])
        if not _solve(hessian, gradient, step):
            return
        decrease = 0.0
        for i in range(n):
            decrease += gradient[i] * step[i]
        if not decrease > 0.01:
            return
        length = 1.0
        while True:
            for i in range(n):
                moved[i] = v[i] - length * step[i]
            trial = _merit(moved, barrier, M, m, q, a, cone, positive, logs, growth)
            if trial <= value - 0.1 * length * decrease:
                break
            length *= 0.5
            if length < 1e-9:
                return
        v[:] = moved
        value = trial


@inner_kernel
def _merit(
    v: Array, barrier: float, M: Array, m: Array, q: Array, a: Array, cone: Array, positive: Places,
    logs: Array, growth: Array,
) -> float:  # fmt: skip
    """Return -proven/barrier - sum log(slack), infinite outside the conditions."""
    found = 0.0
    for i in positive:
        if v[i] <= 0.0:
            return np.inf
        found -= np.log(v[i])
    stretch = v[v.size - 1]
    _take_logs(v, M, m, logs)
    proven = 0.0
    for j in range(logs.size):
        if not logs[j] <= 50.0:
            return np.inf
        growth[j] = np.expm1(logs[j])
        proven += stretch * a[j] * (logs[j] - growth[j])
    for r in range(cone.shape[0]):
        slack = 0.0
        for j in range(logs.size):
            slack -= stretch * cone[r, j] * growth[j]
        if slack <= 0.0:
            return np.inf
        found -= np.log(slack)
    for i in range(v.size):
        proven += q[i] * v[i]
    return found - proven / barrier


@inner_kernel
def _take_logs(v: Array, M: Array, m: Array, logs: Array) -> None:
    for j in range(m.size):
        total = m[j]
        for i in range(v.size):
            total += M[j, i] * v[i]
        logs[j] = total / v[v.size - 1]


@inner_kernel
def _solve(matrix: Array, right: Array, found: Array) -> bool:
    """Solve for ``found`` by Cholesky's method, in place; False where ``matrix`` is not positive definite."""
    n = right.size
    for i in range(n):
        for k in range(i + 1):
            total = matrix[i, k]
            for j in range(k):
                total -= matrix[i, j] * matrix[k, j]
            if k < i:
                matrix[i, k] = total / matrix[k, k]
            elif total > 0.0:
                matrix[i, i] = np.sqrt(total)
            else:
                return False
    for i in range(n):
        total = right[i]
        for j in range(i):
            total -= matrix[i, j] * found[j]
        found[i] = total / matrix[i, i]
    for i in range(n - 1, -1, -1):
        total = found[i]
        for j in range(i + 1, n):
            total -= matrix[j, i] * found[j]
        found[i] = total / matrix[i, i]
    return True
