"""Python imports this file at its start, because `leave_out` put its folder on the PYTHONPATH.

It takes the place of a `sitecustomize` of the environment, and then runs that one.
"""

import importlib
import os
import sys

for name in filter(None, os.environ.get("BMT_LEFT_OUT", "").split(",")):
    sys.modules[name] = None  # type: ignore[assignment]
_folder = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [place for place in sys.path if os.path.abspath(place) != _folder]
_this = sys.modules.pop("sitecustomize")
try:
    importlib.import_module("sitecustomize")
except ModuleNotFoundError as error:
    if error.name != "sitecustomize":
        raise
    sys.modules["sitecustomize"] = _this
