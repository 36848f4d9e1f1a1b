"""Images: find them, read them safely, and fit them to the network's square.

A name is loaded when it is first used, so that a process that only decodes loads neither torch nor FAISS.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
