"""The judge of scaling-law claims.

    import theory

    report = theory.check(df)                            # a DataFrame, a CSV or parquet file, or a study folder
    report["generalization"].verdict, report.to_frame(), report.plot("generalization")
    theory.test(df, "loss ~ E + A*tokens**-b", claimed={"b": 0.34}, cluster="seed")
    fit = theory.fit(df, "E + A*params**-a", target="loss")
    theory.predict(fit, new)
    theory.compare(df, by="arm")
    theory.advise(df, samples=5000)
    theory.plan(rank=[4, 8, 16], samples=[256, 1024], seeds=5, noise=0.2)
    theory.next(df, claim="generalization", budget=7200)
    theory.choose(df, "E + A*params**-a", target="loss", cost="flops", budget=1e20)

Names are loaded when they are first used: SciPy, pandas and matplotlib take a second together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theory.api import advise as advise
    from theory.api import check as check
    from theory.api import choose as choose
    from theory.api import compare as compare
    from theory.api import fit as fit
    from theory.api import next as next
    from theory.api import plan as plan
    from theory.api import predict as predict
    from theory.api import test as test
    from theory.errors import InputError as InputError
    from theory.report import Report as Report

_WHERE = {
    "check": "theory.api",
    "fit": "theory.api",
    "predict": "theory.api",
    "compare": "theory.api",
    "advise": "theory.api",
    "plan": "theory.api",
    "next": "theory.api",
    "choose": "theory.api",
    "test": "theory.api",
    "InputError": "theory.errors",
    "Report": "theory.report",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        try:
            return metadata.version("lrc-scaling-suite")
        except metadata.PackageNotFoundError:
            return "0+checkout"
    if name not in _WHERE:
        raise AttributeError(f"module 'theory' has no attribute {name!r}; it has {', '.join(_WHERE)}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
