"""Whatever Python runs with this folder on its path has a GPU, and so have its children:

PYTHONPATH=tests/pretend_gpu/site:src:. python -m benchmarks.gpu --device cuda --tiny --out FOLDER
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

from tests.pretend_gpu.cuda import pretend

pretend()
