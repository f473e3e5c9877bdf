"""Settings that every test shares: one thread, no network, no file outside the test's own folders."""

import atexit
import os
import shutil
import tempfile

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="runner-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
