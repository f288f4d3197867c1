"""Problems whose exponents, optima or verdicts are known, to see the judge come out both ways.

`surfaces`: tables drawn from laws with planted exponents, and null injections that mimic a claimed rate.
`denoising` (E1, E2, E5), `softmax` (E3), `linear_loss` (E4), `optimisation` (E6): learning problems with exact or
simulated truth.
"""
