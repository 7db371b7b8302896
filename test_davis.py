"""Evaluate features on DAVIS-2017 by label propagation: first-frame masks in, masks of all frames and J&F out.

    python test_davis.py --cropSize 480                                   # synthetic video, no download
    python test_davis.py --davis DAVIS --resume checkpoint_14.pth.tar     # DAVIS-2017 with the released weights
    python test_davis.py --davis DAVIS --protocol dino --features my_model:extract

The default protocol is TimeCycle's (Wang, Jabri, Efros, CVPR 2019, section 4.2) with the settings of its release.
"""

import argparse
import signal

from timecycle.errors import run_command_line
from timecycle.evaluation.davis.command import add_options, run


def main() -> None:
    """The command line; exits with status 2 on unknown options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    # Handle SIGTERM like Ctrl-C, so that unfinished files are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_command_line(main)
