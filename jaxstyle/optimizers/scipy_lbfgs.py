"""SciPy's L-BFGS-B: the host drives, in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstyle.optimizers.base import Iterate, Optimizer, Outcome, Visit


class ScipyLBFGSState(NamedTuple):
    """The arrays of L-BFGS-B's reverse communication (SciPy's own names), all NumPy."""

    x: np.ndarray
    f: np.ndarray
    g: np.ndarray
    wa: np.ndarray
    iwa: np.ndarray
    task: np.ndarray
    lsave: np.ndarray
    isave: np.ndarray
    dsave: np.ndarray
    ln_task: np.ndarray


_STEPSIZE = 13  # in dsave: of the line search
_START, _NEW_X, _EVALUATE = 0, 1, 3  # task[0] of L-BFGS-B


def scipy_lbfgs(history_size: int = 10, max_evaluations: int = 20) -> Optimizer:
    """SciPy's L-BFGS-B without bounds: what the 2017 study ran. Byrd, Lu, Nocedal and Zhu 1995.

    It never stops for a small decrease; where its line search fails it starts again with an empty memory. Its
    `step` runs on the host and cannot be traced: `visit` is a compiled function there, that moves no pixel.

    Args:
      history_size: corrections kept.
      max_evaluations: of one line search.
    """
    # Here, as only this optimizer should wait for it; not in a step, as no clock should hold it.
    from scipy.optimize import _lbfgsb

    def start(iterate: Iterate) -> ScipyLBFGSState:
        n, m = iterate.image.size, history_size
        return ScipyLBFGSState(
            x=np.asarray(iterate.image, np.float64).ravel(),
            f=np.array(iterate.evaluation.total, np.float64),
            g=np.asarray(iterate.evaluation.gradient, np.float64).ravel(),
            wa=np.zeros(2 * m * n + 5 * n + 11 * m * m + 8 * m),
            iwa=np.zeros(3 * n, np.int32),
            task=np.zeros(2, np.int32),
            lsave=np.zeros(4, np.int32),
            isave=np.zeros(44, np.int32),
            dsave=np.zeros(29),
            ln_task=np.zeros(2, np.int32),
        )

    def step(visit: Visit, iterate: Iterate, state: ScipyLBFGSState) -> Outcome:
        state = jax.tree.map(np.array, state)  # L-BFGS-B writes into its arrays
        unbounded = np.zeros(state.x.size)
        fresh = bool(state.task[0] == _START)
        current, evaluations = iterate, 0
        while True:
            _lbfgsb.setulb(
                *(history_size, state.x, unbounded, unbounded, unbounded.astype(np.int32)),
                *(state.f, state.g, 0.0, 0.0, state.wa, state.iwa, state.task),
                *(state.lsave, state.isave, state.dsave, max_evaluations, state.ln_task),
            )
            if state.task[0] == _NEW_X:
                return Outcome(current, state, jnp.int32(evaluations), jnp.bool_(False))
            if state.task[0] != _EVALUATE:
                if fresh:
                    return Outcome(iterate, start(iterate), jnp.int32(evaluations), jnp.bool_(True))
                state, fresh, current = start(iterate), True, iterate
                continue
            image = jnp.asarray(state.x.reshape(iterate.image.shape), iterate.image.dtype)
            if not np.array_equal(image, current.image):
                current = visit(image)
                evaluations += 1
            state.f[()] = current.evaluation.total
            state.g[:] = np.asarray(current.evaluation.gradient).ravel()

    return Optimizer(start, step, lambda _, iterate: start(iterate), lambda state: state.dsave[_STEPSIZE])
