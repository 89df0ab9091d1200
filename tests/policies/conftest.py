"""Networks this small are slower on several threads, most of all where tests run in parallel."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
