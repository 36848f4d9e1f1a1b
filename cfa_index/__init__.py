"""Find defects in industrial images by retrieval.

    from cfa_index import ModelBundle
    for verdict in ModelBundle.load("models/cable").score(["a.png", "b.png"]):
        print(verdict.score, verdict.is_anomalous)

Importing the package costs nothing: a public name (they are listed in `__init__.pyi`) is loaded
when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
