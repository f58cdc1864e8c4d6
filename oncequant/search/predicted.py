"""NSGA-II over predicted accuracy (placeholder until the measured version lands)."""

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.optimize import minimize

from oncequant.search.budget import cost_batch, covering_codes
from oncequant.search.nsga2 import Canonical, Redraw


def search(space, predictor, *, cost="bitops", budgets=(), fixed=None, first=None, population=500, generations=1000, seed, progress=None):
    rng = np.random.default_rng(seed)
    fixed_columns = {space.free.index(k): space.choices[k].index(v) for k, v in (fixed or {}).items() if k in space.free}

    def hold(codes):
        codes = codes.copy()
        for c, v in fixed_columns.items():
            codes[:, c] = v
        return space.canonical(codes)

    class P(Problem):
        def __init__(self):
            super().__init__(n_var=len(space.free), n_obj=2, n_ieq_constr=len(budgets), xl=0, xu=space.cardinalities - 1, vtype=int)

        def _evaluate(self, X, out, *a, **k):
            X = hold(X.astype(np.int64))
            out["F"] = np.column_stack([1 - predictor.top1(X), np.log(cost_batch(space, cost, X))])
            if budgets:
                out["G"] = np.column_stack([cost_batch(space, b.cost, X) / b.limit - 1 for b in budgets])

    start = covering_codes(space, budgets, cost, rng, population)
    if first is not None:
        start = np.concatenate([first, start])[-population:]
    start = hold(start)
    res = minimize(P(), NSGA2(pop_size=population, sampling=start, crossover=UniformCrossover(), mutation=Redraw(space), repair=Canonical(space)), ("n_gen", generations), seed=seed)
    X = np.unique(hold(np.atleast_2d(res.X).astype(np.int64)), axis=0)
    return X[np.argsort(cost_batch(space, cost, X))]
