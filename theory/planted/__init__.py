"""Problems whose exponents, optima or verdicts are known, to see the judge come out both ways.

`rates`: laws with known slopes and the words that they allow; `surfaces`: tables drawn from laws, and null injections
that mimic a claimed rate. `denoising` (E1, E2, E5), `softmax` (E3), `linear_loss` (E4), `optimisation` (E6): learning
problems with exact or simulated truth. `cases`: the zoo made of them, for `theory validate`. `attacks`: tables with
something wrong in them.
"""
