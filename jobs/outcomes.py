"""`python jobs/outcomes.py --config FILE --set key=value`: `dkt outcomes` for a checkout and for `ray job submit`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from dkt_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("outcomes", sys.argv[1:]))
