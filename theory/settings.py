"""Numbers that the command line shows in its help; they load nothing."""

from __future__ import annotations

BOOTSTRAPS = 1000  # of `fit`
PLAN_REPLICATIONS = 50  # simulated studies per planted law, of `plan`
FULL_REPLICATIONS = 30  # per case, of `validate`
QUICK_REPLICATIONS = 2  # of `validate --quick`
OWN_MARGIN = 0.05  # of a claim of one's own, `test`
NOISE = 0.2  # standard deviation of the logarithm of one run, of `plan`
LOSS_NOISE = 0.01  # the same of the loss of one run, nats per token, where methods are compared
RATES = 4  # learning rates per method
NEXT_SIMULATIONS = 48  # simulated tables per set of runs that stays in the race, of `next`
