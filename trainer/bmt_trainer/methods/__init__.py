"""Training methods: SFT, DPO, KTO, GRPO and SDFT of a mask, on TRL's trainers.

TRL reads both settings below when it is imported, so they are made here, before any module of
this package imports it.
"""

import os
import warnings

# Parts of TRL may change, but a check names them (`guards/trl_contract.py`); its vLLM rollouts are
# not used.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
